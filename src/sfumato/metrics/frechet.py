"""Fréchet distance between the Gaussians fitted to two sets of features (FID with the FID network)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.metrics.estimate import Estimate, checked, half_width


@dataclass
class Moments:
    """Count, sum and sum of outer products of features: all that a Fréchet distance needs, in one pass.

    Moments of parts add up to the moments of the whole, so shards and machines merge by `+`.

    Args:
        count: N.
        total: Σ x, (D,) float64.
        outer: Σ x xᵀ, (D, D) float64.
    """

    count: int
    total: Tensor
    outer: Tensor

    @staticmethod
    def empty(dim: int) -> Moments:
        """The moments of no pictures at all."""
        return Moments(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @staticmethod
    def of(features: Tensor) -> Moments:
        """The moments of features (N, D)."""
        rows = features.double()
        return Moments(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D), with N - 1 in the denominator."""
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


@dataclass(frozen=True)
class FrechetEstimate(Estimate):
    """A Fréchet distance.

    Args:
        singular: a set has fewer than D + 1 pictures, so its covariance is not of full rank and the number
            is far above its limit; compare it only with numbers of the same N.
    """

    singular: bool = False


def frechet(
    generated: Tensor, real: Tensor, *, features: str = "features", resamples: int = 20, seed: int = 0
) -> FrechetEstimate:
    """Squared Fréchet distance between the Gaussians fitted to two sets of features.

        ‖μ₁ - μ₂‖² + Tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½)

    The trace of the root is computed as the nuclear norm of R₁R₂ᵀ with Σ = RᵀR: no root of a nearly
    singular product is ever taken. The estimate is biased upwards, by (2D + D (D + 1) / 2) / N for two sets
    of N with identity covariance, so models compare at equal N only. The interval (bootstrap of both sets)
    says how much new draws at the same N would move the number, not where the limit lies; with fewer
    pictures than features it is up to twice as wide as need be.

    Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    arXiv:1706.08500.

    Args:
        generated: (N, D).
        real: (M, D).
        features: name of the feature network.
        resamples: bootstrap draws, 0 for no interval.
        seed: of the bootstrap.

    Raises:
        InvalidInput: fewer than 2 pictures on a side, or other shapes.
        NotFinite: NaN or infinity.
    """
    generated, real = checked(generated, real, 2)
    value = distance_of_rows(generated, real)
    low, high = bootstrap_interval(distance_of_rows, value, generated, real, resamples, seed)
    singular = min(len(generated), len(real)) <= generated.shape[1]
    return FrechetEstimate(
        "frechet", value, low, high, len(generated), len(real), features, _notes(generated, real), singular
    )


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance between two streamed sets, as `frechet` but without an interval.

    Raises:
        InvalidInput: a set of fewer than 2 pictures, or features of different lengths.
    """
    if min(first.count, second.count) < 2:
        raise InvalidInput("a covariance needs 2 pictures or more", where="moments")
    if first.total.shape != second.total.shape:
        raise InvalidInput("the two sets have features of different lengths", where="moments")
    return _between(first.mean, _root(first.covariance), second.mean, _root(second.covariance))


def distance_of_rows(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of features (N, D) and (M, D) float64, unchecked and without an interval."""
    return _between(a.mean(0), _rows_root(a), b.mean(0), _rows_root(b))


def _between(mean1: Tensor, root1: Tensor, mean2: Tensor, root2: Tensor) -> float:
    traces = root1.square().sum() + root2.square().sum()
    cross = torch.linalg.svdvals(root1 @ root2.T).sum()
    return float((mean1 - mean2).square().sum() + traces - 2 * cross)


def _rows_root(rows: Tensor) -> Tensor:
    """R with RᵀR the covariance of the rows: themselves while there are no more of them than columns."""
    centred = (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else _root(centred.T @ centred)


def _root(covariance: Tensor) -> Tensor:
    """R with RᵀR = covariance, (D, D)."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return torch.transpose(factor, 0, 1)
    values, vectors = torch.linalg.eigh(covariance)
    # Below this an eigenvalue is rounding noise, whose root would be 10⁸ times larger than the noise.
    noise = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, 0).sqrt()[:, None] * vectors.T


def bootstrap_interval(
    measure: Callable[[Tensor, Tensor], float],
    value: float,
    a: Tensor,
    b: Tensor,
    resamples: int,
    seed: int,
    floor: float = 0.0,
) -> tuple[float | None, float | None]:
    """Value ± t · (standard deviation over bootstrap draws of both sets), or nothing for no draws.

    Percentiles of the draws would not do: resampling adds the small-sample bias a second time.

    Args:
        measure: the number as a function of two sets of features.
        value: the number for these two.
        a: (N, D).
        b: (M, D).
        resamples: draws, 0 or at least 2.
        seed: of the draws.
        floor: the least value that makes sense.
    """
    if resamples == 0:
        return None, None
    if resamples < 2:
        raise InvalidInput("a spread needs 2 draws or more", where="resamples", do="give 0 for no interval")
    noise = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        rows = [side[torch.randint(len(side), (len(side),), generator=noise)] for side in (a, b)]
        draws.append(measure(rows[0], rows[1]))
    half = half_width(float(torch.tensor(draws, dtype=torch.float64).std()), resamples - 1)
    return max(floor, value - half), value + half


def _notes(generated: Tensor, real: Tensor) -> tuple[str, ...]:
    fewest, dim = min(len(generated), len(real)), generated.shape[1]
    if fewest > dim:
        return ()
    return (f"{fewest} pictures for {dim} features: far above its limit, compare at equal N only",)
