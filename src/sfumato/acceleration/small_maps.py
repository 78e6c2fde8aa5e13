"""Convolutions of small maps: three by three as nine products, none of them with the zeros around."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, I, H, W) by a kernel (O, I, 3, 3), zeros around it: (B, O, H, W).

        y[p] = Σ_s  W[s] x[p + s],    over shifts s by -1, 0 or 1 along both sides, where p + s is in the map

    One product of matrices for each shift, of the places that have one there: of 4 x 4 places 100 pairs in
    place of 144. Exact but for the order of sums. Works on channels last, which its result is laid out as.
    """
    return _summed(x, [each.t() for each in _by_shift(weight)], bias)


def gradient_of_x(gradient: Tensor, weight: Tensor) -> Tensor:
    """That of what `convolved` was given, (B, I, H, W), of that of its result, (B, O, H, W)."""
    return _summed(gradient, _by_shift(weight)[::-1], None)


def gradient_of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """That of the kernel, (O, I, 3, 3), of x (B, I, H, W) and of the gradient of its result, (B, O, H, W)."""
    into, out = x.shape[1], gradient.shape[1]
    made = x.new_empty(out, 3, 3, into)
    x, gradient = x.movedim(1, -1), gradient.movedim(1, -1)
    for at, (there, here) in enumerate(_shifts(*x.shape[1:3])):
        of_shift = made[:, at // 3, at % 3]
        torch.mm(gradient[here].reshape(-1, out).t(), x[there].reshape(-1, into), out=of_shift)
    return made.movedim(-1, 1)


def _summed(x: Tensor, matrices: list[Tensor] | tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    x, out = x.movedim(1, -1), matrices[0].shape[1]
    made = x.new_zeros(*x.shape[:3], out) if bias is None else bias.expand(*x.shape[:3], out).contiguous()
    for matrix, (there, here) in zip(matrices, _shifts(*x.shape[1:3]), strict=True):
        taken = x[there]
        made[here] += (taken.reshape(-1, len(matrix)) @ matrix).view(*taken.shape[:3], out)
    return made.movedim(-1, 1)


def _by_shift(weight: Tensor) -> tuple[Tensor, ...]:
    """Nine matrices (O, I), rows of the kernel after one another."""
    return weight.movedim((2, 3), (0, 1)).flatten(0, 1).unbind()


def _shifts(*sides: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """For each shift, rows of the kernel after one another: places, with it, and the same without."""
    for shifts in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
        kept = [(max(0, s), max(0, -s), max(0, n - abs(s))) for s, n in zip(shifts, sides, strict=True)]
        there = tuple(slice(first, first + count) for first, _, count in kept)
        here = tuple(slice(first, first + count) for _, first, count in kept)
        yield (slice(None), *there), (slice(None), *here)
