"""Kernel distance between two sets of features, unbiased at any number of pictures (KID)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.metrics.estimate import Estimate, checked, half_width

# Rows a side of the largest full kernel (above, subsets are cheaper), and kernel entries held at once.
_TABLE_ROWS, _BLOCK = 10_000, 1 << 24


@dataclass(frozen=True)
class KidEstimate(Estimate):
    """A kernel distance.

    Args:
        std: standard deviation over the subsets, the number papers print after ±; it is the scatter of one
            subset, not the error of the mean. None where one subset holds everything.
    """

    std: float | None = None


def kid(
    generated: Tensor,
    real: Tensor,
    *,
    features: str = "features",
    subset: int = 1000,
    subsets: int = 100,
    seed: int = 0,
) -> KidEstimate:
    """Kernel distance: the unbiased squared MMD of two sets under k(x, y) = (x·y / D + 1)³.

        (Σ_{i≠j} k(xᵢ, xⱼ)) / m(m-1) + (Σ_{i≠j} k(yᵢ, yⱼ)) / n(n-1) - 2 mean k(xᵢ, yⱼ)

    averaged over random subsets, as published (not times 1000). It is zero on average for equal
    distributions and may therefore be negative. With fewer pictures than `subset` all of them are one
    subset. The interval is the jackknife's over both sets, plus the scatter of the subsets' mean; for
    equal distributions it is wider than it need be.

    Bińkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401.

    Args:
        generated: (N, D).
        real: (M, D).
        features: name of the feature network.
        subset: pictures in a subset.
        subsets: how many subsets.
        seed: of their choice.

    Raises:
        InvalidInput: fewer than 3 pictures on a side, or other shapes.
        NotFinite: NaN or infinity.
    """
    if subset < 3 or subsets < 1:
        raise InvalidInput(f"expected subset ≥ 3 and subsets ≥ 1, got {subset} and {subsets}", where="kid")
    generated, real = checked(generated, real, 3)
    m, n = len(generated), len(real)
    whole = min(m, n) <= subset
    picks_x, picks_y = ([], []) if whole else _picks(m, n, subset, subsets, seed)
    if max(m, n) <= _TABLE_ROWS:
        # One table of the kernel serves every subset and the error: its products with 0/1 columns.
        table = _Table.of(generated, real, _columns(picks_x, m), _columns(picks_y, n))
        scores, error = table.values(), table.error()
    else:
        noise = torch.Generator().manual_seed(seed)
        part_x, part_y = (
            rows[torch.randperm(len(rows), generator=noise)[:_TABLE_ROWS]] for rows in (generated, real)
        )
        error = _Table.of(part_x, part_y).error(len(part_x) / m, len(part_y) / n)
        pairs = zip(picks_x, picks_y, strict=True)
        draws = [squared_mmd(generated[i], real[j]) for i, j in pairs] or [squared_mmd(generated, real)]
        scores = torch.tensor(draws, dtype=torch.float64)
    std = None
    if whole:
        value = float(scores[0])
    else:
        scores = scores[:subsets]
        value, std = float(scores.mean()), float(scores.std(unbiased=False))
        error = math.sqrt(error**2 + std**2 / subsets)
    half = half_width(error)
    return KidEstimate("kid", value, value - half, value + half, m, n, features, std=std)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of x (m, D) and y (n, D) under the cubic kernel."""
    return float(_Table.of(x, y).values()[0])


class _Table(NamedTuple):
    """Kernel sums over chosen pictures: columns of 0/1 choose them, the last column chooses all."""

    chosen_x: Tensor  # (m, S)
    chosen_y: Tensor  # (n, S)
    within_x: Tensor  # (m, S): Σ_{j≠i} k(xᵢ, xⱼ) over the chosen j
    within_y: Tensor  # (n, S)
    across_x: Tensor  # (m, S): Σ_j k(xᵢ, yⱼ)
    across_y: Tensor  # (n, S)

    @staticmethod
    def of(x: Tensor, y: Tensor, chosen_x: Tensor | None = None, chosen_y: Tensor | None = None) -> _Table:
        chosen_x = _columns([], len(x)) if chosen_x is None else chosen_x
        chosen_y = _columns([], len(y)) if chosen_y is None else chosen_y
        return _Table(
            chosen_x,
            chosen_y,
            _kernel_sums(x, x, chosen_x) - _kernel(x.square().sum(1, keepdim=True), x.shape[1]) * chosen_x,
            _kernel_sums(y, y, chosen_y) - _kernel(y.square().sum(1, keepdim=True), x.shape[1]) * chosen_y,
            _kernel_sums(x, y, chosen_y),
            _kernel_sums(y, x, chosen_x[:, -1:]),
        )

    def values(self) -> Tensor:
        """The squared MMD of every choice, (S,)."""
        m, n = self.chosen_x.sum(0), self.chosen_y.sum(0)
        within_x = (self.chosen_x * self.within_x).sum(0) / (m * (m - 1))
        within_y = (self.chosen_y * self.within_y).sum(0) / (n * (n - 1))
        return within_x + within_y - 2 * (self.chosen_x * self.across_x).sum(0) / (m * n)

    def error(self, share_x: float = 1.0, share_y: float = 1.0) -> float:
        """Jackknife standard error with all chosen: each picture of either set is left out once.

        Of large sets the table holds a share; the variance of a mean goes as 1 / N.
        """
        variance = 0.0
        for within, across, others, share in (
            (self.within_x[:, -1], self.across_x[:, -1], len(self.chosen_y), share_x),
            (self.within_y[:, -1], self.across_y[:, -1], len(self.chosen_x), share_y),
        ):
            m = len(within)
            left = (within.sum() - 2 * within) / ((m - 1) * (m - 2))
            left = left - 2 * (across.sum() - across) / ((m - 1) * others)
            variance += (m - 1) * float(left.var(unbiased=False)) * share
        return math.sqrt(variance)


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


def _kernel_sums(x: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
    """Σ_j k(xᵢ, yⱼ) over the chosen j, (m, S), a block of rows at a time."""
    blocks = torch.split(x, max(1, _BLOCK // len(y)))
    return torch.cat([_kernel(block @ y.T, x.shape[1]) @ chosen for block in blocks])


def _picks(m: int, n: int, subset: int, subsets: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Row numbers of the subsets of either side; real first, the order every reference draws in."""
    noise = torch.Generator().manual_seed(seed)
    picks_x, picks_y = [], []
    for _ in range(subsets):
        picks_y.append(torch.randperm(n, generator=noise)[:subset])
        picks_x.append(torch.randperm(m, generator=noise)[:subset])
    return picks_x, picks_y


def _columns(picks: list[Tensor], count: int) -> Tensor:
    """(count, number of picks + 1): ones at the picked rows, and a last column of ones."""
    columns = torch.ones(count, len(picks) + 1, dtype=torch.float64)
    for column, rows in enumerate(picks):
        columns[:, column] = 0
        columns[rows, column] = 1
    return columns
