"""Fréchet distance extrapolated to infinitely many pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.metrics.estimate import checked
from sfumato.metrics.frechet import FrechetEstimate, bootstrap_interval, distance_of_rows


def frechet_infinite(
    generated: Tensor,
    real: Tensor,
    *,
    features: str = "features",
    pieces: int = 4,
    resamples: int = 20,
    seed: int = 0,
) -> FrechetEstimate:
    """Fréchet distance extrapolated to infinitely many pictures, free of its 1/N bias to first order.

    Both sets are cut into 1, 2, ... `pieces` equal parts; the mean distance over the parts is fitted by a
    line in 1/N, and its intercept returned. It costs pieces (pieces + 1) / 2 distances, times the resamples.
    May be slightly negative for equal distributions.

    After Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and Where to Find Them",
    arXiv:1911.07023 (they shrink the generated set only; here the bias of both sets is removed).

    Args:
        generated: (N, D); the law holds where N / pieces is above D.
        real: (M, D).
        features: name of the feature network.
        pieces: the most parts a set is cut into, at least 2.
        resamples: bootstrap draws, 0 for no interval.
        seed: of the cuts and the bootstrap.

    Raises:
        InvalidInput: too few pictures for that many parts, or other shapes.
        NotFinite: NaN or infinity.
    """
    if pieces < 2:
        raise InvalidInput(f"a line needs two sizes, got pieces {pieces}", where="pieces")
    generated, real = checked(generated, real, 2 * pieces)
    noise = torch.Generator().manual_seed(seed)
    first = generated[torch.randperm(len(generated), generator=noise)]
    second = real[torch.randperm(len(real), generator=noise)]

    def intercept(a: Tensor, b: Tensor) -> float:
        cuts = range(1, pieces + 1)
        heights = [sum(map(distance_of_rows, _parts(a, cut), _parts(b, cut))) / cut for cut in cuts]
        middle, level = sum(cuts) / pieces, sum(heights) / pieces
        slope = sum((cut - middle) * height for cut, height in zip(cuts, heights, strict=True))
        return level - middle * slope / sum((cut - middle) ** 2 for cut in cuts)

    value = intercept(first, second)
    low, high = bootstrap_interval(intercept, value, first, second, resamples, seed, floor=-math.inf)
    smallest = min(len(generated), len(real)) // pieces
    singular = smallest <= generated.shape[1]
    notes = (
        (f"parts of {smallest} pictures for {generated.shape[1]} features bend the line",) if singular else ()
    )
    return FrechetEstimate(
        "frechet_infinite", value, low, high, len(generated), len(real), features, notes, singular
    )


def _parts(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    size = len(rows) // count
    return torch.split(rows[: size * count], size)
