"""The noise ladder of NCSN, and the rules of NCSNv2 that choose it from the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class NCSN(Process):
    """A geometric ladder of L noise levels above the data: alpha = 1, sigma from sigma_max to sigma_min.

        sigma_k = sigma_min (sigma_max / sigma_min)^(k / (L - 1)),   k = 0 .. L-1 at t = (k + 1) / L

    (The papers count downwards: their sigma_1 is sigma_max, their sigma_L sigma_min.) Between levels log
    sigma is interpolated linearly; from the least to clean data the noise variance is. Walked by `langevin`
    on the grid `trailing` of L steps it is annealed Langevin dynamics. With its 1000 levels by default it is
    the ladder of score-based models on variance-exploding SDEs; `for_data` chooses it as NCSNv2 does.

    Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution",
    arXiv:1907.05600 (L = 10, 1 to .01); Song & Ermon 2020, "Improved Techniques for Training Score-Based
    Generative Models", arXiv:2006.09011 (CIFAR-10: L = 232, 50 to .01; CelebA 64²: L = 500, 90 to .01).

    Args:
        sigma_min: the least noise (.01 for data in [0, 1]).
        sigma_max: the most.
        steps: L, at least 2.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise InvalidInput(f"{self.steps} steps are too few", where="ncsn.steps", do="give at least 2")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InvalidInput(
                f"noise from {self.sigma_max} to {self.sigma_min} does not fall",
                where="ncsn.sigma_min, sigma_max",
            )

    @staticmethod
    def for_data(images: Tensor, sigma_min: float = 0.01, overlap: float = 0.5) -> NCSN:
        """The ladder of NCSNv2 for data (N, ..): from their largest distance down, in steps that overlap.

        Args:
            images: the data or some thousands of them, of five or more numbers each.
            sigma_min: the least noise.
            overlap: see `ladder_ratio`.
        """
        sigma_max = largest_distance(images)
        if not sigma_min < sigma_max:
            raise InvalidInput(
                f"data at most {sigma_max:g} apart lie within the least noise", where="images, sigma_min"
            )
        ratio = ladder_ratio(images[0].numel(), overlap)
        return NCSN(sigma_min, sigma_max, 1 + max(1, math.ceil(math.log(sigma_max / sigma_min, ratio))))

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    @property
    def ratio(self) -> float:
        """sigma of a level over the next lower one's (the γ of NCSNv2)."""
        return math.exp(self._rise)

    @property
    def _rise(self) -> float:
        return math.log(self.sigma_max / self.sigma_min) / (self.steps - 1)

    def level(self, t: Tensor) -> Level[Tensor]:
        position = t * self.steps - 1
        first = (t * self.steps).clamp(1e-300, 1).sqrt()
        sigma = self.sigma_min * torch.where(position < 0, first, (position * self._rise).exp())
        return Level(torch.ones_like(t), sigma)

    def invert(self, log_snr: Tensor) -> Tensor:
        position = (-log_snr - math.log(self.sigma_min)) / self._rise
        early = (2 * (-log_snr - math.log(self.sigma_min)).clamp_max(0)).exp() / self.steps
        return torch.where(position < 0, early, (position + 1) / self.steps)


def largest_distance(data: Tensor, chunk: int = 1024) -> float:
    """The largest Euclidean distance between two of the data (N, ..): NCSNv2's sigma_max (technique 1).

    Noise as large as that lets a walk come from any of the data to any other. All N² pairs are looked at,
    `chunk` rows against `chunk` rows, so that memory does not grow with N².
    """
    if len(data) < 2:
        raise InvalidInput(f"{len(data)} data have no distance", where="data", do="give at least 2")
    rows = data.flatten(1)
    parts = torch.split(rows if rows.is_floating_point() else rows.float(), chunk)
    return max(float(torch.cdist(part, other).max()) for i, part in enumerate(parts) for other in parts[i:])


def ladder_ratio(dimensions: int, overlap: float = 0.5) -> float:
    """The ratio γ of neighbouring levels at which they overlap as NCSNv2 wants (technique 2).

        Φ(sqrt(2D) (γ - 1) + 3γ) - Φ(sqrt(2D) (γ - 1) - 3γ) = overlap

    Noise in D dimensions is a thin shell: this is the share of the lower level's shell, a Gaussian in radius,
    that the upper one's reaches within three standard deviations. In four dimensions or fewer there are no
    shells, and levels overlap whatever their ratio.
    """
    if not 0 < overlap < 0.997:
        raise InvalidInput(f"{overlap} is no share", where="overlap", do="give a number between 0 and .99")
    root = math.sqrt(2 * dimensions)
    if root <= 3:
        raise InvalidInput(
            f"levels overlap whatever their ratio in {dimensions} dimensions",
            where="dimensions",
            do="choose the number of levels yourself",
        )
    # At the upper end the second Φ is 1 in float64, so that nothing overlaps.
    low, high = 1.0, (root + 10) / (root - 3)
    for _ in range(100):
        middle = (low + high) / 2
        near, far = root * (middle - 1) - 3 * middle, root * (middle - 1) + 3 * middle
        if _normal_cdf(far) - _normal_cdf(near) > overlap:
            low = middle
        else:
            high = middle
    return low


def variance_ratio(snr: float, steps: int, ratio: float) -> float:
    """Variance that Langevin steps leave at a level, over the level's own (technique 4 of NCSNv2).

        (1 - e)^(2 steps) (γ² - k) + k,   e = 2 snr²,   k = 2e / (1 - (1 - e)²)

    for data at a point, coming from the level γ times as high.
    """
    size = 2 * snr**2
    stationary = 2 / (2 - size)
    return float((1 - size) ** (2 * steps) * (ratio**2 - stationary) + stationary)


def langevin_snr(ratio: float, steps: int) -> float:
    """The snr of `langevin` that brings `variance_ratio` nearest to 1 on a ladder of ratio γ.

    It stays above 1, for each step leaves noise of its own: too small a step does not forget the level above,
    too large a one adds more. NCSNv2's step sizes are the minima, to their two digits: .176 and .128.
    """
    if not ratio > 1 or steps < 1:
        raise InvalidInput(f"{steps} steps on a ladder of ratio {ratio}", where="ratio, steps")
    low, high = 0.0, math.sqrt(0.5)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if variance_ratio(left, steps, ratio) < variance_ratio(right, steps, ratio):
            high = right
        else:
            low = left
    return (low + high) / 2


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
