"""Precision, recall, density and coverage: quality and variety of pictures, told apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.metrics.estimate import Estimate, checked, half_width, wilson

# Distances held at once: 128 MB.
_BLOCK = 1 << 24


class PrecisionRecallEstimates(NamedTuple):
    """Four numbers from one table of distances.

    Args:
        precision: share of generated pictures that lie among the real ones: quality.
        recall: share of real pictures that lie among the generated ones: variety.
        density: how many real neighbourhoods a generated picture lies in, over k; around 1 for equal
            distributions, above where samples crowd the typical; outliers barely move it.
        coverage: share of real pictures with a generated one in their neighbourhood.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def precision_recall(
    generated: Tensor,
    real: Tensor,
    *,
    features: str = "features",
    k: int = 3,
    k_coverage: int = 5,
) -> PrecisionRecallEstimates:
    """Precision and recall by balls around pictures that reach to their k-th nearest neighbour.

    A picture lies among others if it falls into any of their balls (k = 3); density and coverage count the
    balls of real pictures (k = 5). The intervals (Wilson; normal for density) take the balls as given: they
    say what other draws of the counted side would give.

    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
    arXiv:1904.06991; Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models",
    arXiv:2002.09797.

    Args:
        generated: (N, D).
        real: (M, D), the same number by custom: the balls shrink as pictures are added.
        features: name of the feature network.
        k: neighbours that set the radius for precision and recall.
        k_coverage: the same for density and coverage.

    Raises:
        InvalidInput: k below 1, no more pictures than k, or other shapes.
        NotFinite: NaN or infinity.
    """
    if min(k, k_coverage) < 1:
        raise InvalidInput(f"expected k ≥ 1, got {k} and {k_coverage}", where="precision_recall")
    generated, real = checked(generated, real, max(k, k_coverage) + 1)
    centre = real.mean(0)
    generated, real = generated - centre, real - centre

    fake_reach = _squared_radii(generated, (k,))[:, 0]
    real_reach, wide_reach = _squared_radii(real, (k, k_coverage)).T
    n, m = len(generated), len(real)
    precise = torch.zeros(n, dtype=torch.bool)
    inside = torch.zeros(n, dtype=torch.int64)
    recalled, covered = [], []
    start = 0
    for rows in torch.split(real, max(1, _BLOCK // n)):
        squared = _squared_distances(rows, generated)
        block = slice(start, start + len(rows))
        precise |= (squared <= real_reach[block, None]).any(0)
        recalled.append((squared <= fake_reach).any(1))
        within = squared <= wide_reach[block, None]
        inside += within.sum(0)
        covered.append(within.any(1))
        start += len(rows)

    notes = () if n == m else (f"{n} generated and {m} real: made for equal numbers",)

    def share(name: str, hits: Tensor) -> Estimate:
        count = int(hits.sum())
        return Estimate(name, count / len(hits), *wilson(count, len(hits)), n, m, features, notes)

    counts = inside.double() / k_coverage
    density, half = float(counts.mean()), half_width(float(counts.std()) / math.sqrt(n))
    return PrecisionRecallEstimates(
        share("precision", precise),
        share("recall", torch.cat(recalled)),
        Estimate("density", density, max(0.0, density - half), density + half, n, m, features, notes),
        share("coverage", torch.cat(covered)),
    )


def _squared_radii(rows: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Squared distance of every row to its k-th nearest other row, (N, number of ks)."""
    radii = []
    for part in torch.split(rows, max(1, _BLOCK // len(rows))):
        # The nearest row of all is the row itself.
        nearest = _squared_distances(part, rows).topk(max(ks) + 1, largest=False).values
        radii.append(nearest[:, list(ks)])
    # A picture exactly on the edge counts as inside, however its distance was rounded.
    return torch.cat(radii) * (1 + 1e-9)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖aᵢ - bⱼ‖², (N, M), exactly zero for equal rows."""
    sizes = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = sizes - 2 * a @ b.T
    # The expanded square cancels to about 10⁻¹⁶ of its terms, so less than this is nothing.
    return torch.where(squared > 1e-13 * sizes, squared, 0)
