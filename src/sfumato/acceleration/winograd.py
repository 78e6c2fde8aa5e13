"""Winograd's convolution: three by three with a quarter of the multiplications."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4
"""Places along a side of what one tile makes; it reads two more."""
_BAND = 8 << 20
"""Bytes of one of the three stages of a band of tiles, so that they stay in the cache of a core."""

_READ = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_KERNEL = (
    torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
    )
    / 24
)
_WRITE = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


def transformed(weight: Tensor) -> Tensor:
    """A kernel (O, I, 3, 3) as `winograd` multiplies by it: (36, I, O), four times the bytes.

    One matrix for each of the 36 numbers that a tile of 6 x 6 becomes.
    """
    out, into = weight.shape[:2]
    # In two turns, of a matrix and of its rows: in one it takes twice as long.
    rows = weight.reshape(out, -1).t().contiguous().view(into, 9, out).transpose(0, 1).reshape(9, -1)
    kernel = torch.kron(_KERNEL, _KERNEL).to(weight) @ rows
    return kernel.view(36, into, out)


def winograd(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, I, H, W) by a transformed kernel, zeros around it: (B, O, H, W).

        y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A,    summed over I, for tiles d of 6 x 6 that overlap by 2

    Each tile makes 4 x 4 places with 36 multiplications in place of 144. In float32 it is off by some 5e-6 of
    the largest value, the direct sum by 1e-6. Works on channels last, which its result is laid out as; any
    height and width.

    Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4.3.

    Args:
        x: of the kernel's element type.
        kernel: (36, I, O).
        bias: (O,).
    """
    batch, into, height, width = x.shape
    out, (tall, wide) = kernel.shape[2], _tiles(x)
    seen = _around(x)
    made = x.new_empty(batch, TILE * tall, TILE * wide, out)
    write = torch.kron(_WRITE, _WRITE).to(x)
    for band in _bands(x, max(into, out)):
        sums = write @ torch.bmm(_read(seen, band), kernel).view(36, -1)
        places = made[:, band].view(batch, -1, TILE, wide, TILE, out)
        places.copy_(sums.view(TILE, TILE, batch, -1, wide, out).permute(2, 3, 0, 4, 1, 5))
    if bias is not None:
        made += bias
    whole = made[:, :height, :width].permute(0, 3, 1, 2)
    return whole.contiguous(memory_format=torch.channels_last)


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the kernel (O, I, 3, 3), of x (B, I, H, W) and that of the result (B, O, H, W).

    Gᵀ [ Σ (Bᵀ d B)ᵀ (A e Aᵀ) ] G,    summed over tiles d of x and e, of 4 x 4, of the gradient
    """
    height, width = x.shape[2:]
    into, out, (tall, wide) = x.shape[1], gradient.shape[1], _tiles(x)
    seen = _around(x)
    told = F.pad(
        gradient.to(memory_format=torch.channels_last), (0, TILE * wide - width, 0, TILE * tall - height)
    )
    told = told.permute(0, 2, 3, 1)
    write = torch.kron(_WRITE, _WRITE).to(x).t()
    sums = x.new_zeros(36, into, out)
    for band in _bands(x, max(into, out)):
        tiles = told[:, band].unfold(1, TILE, TILE).unfold(2, TILE, TILE)
        parts = (write @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(TILE * TILE, -1)).view(36, -1, out)
        sums.baddbmm_(_read(seen, band).transpose(1, 2), parts)
    kernel = torch.kron(_KERNEL, _KERNEL).to(x).t() @ sums.view(36, -1)
    return kernel.view(3, 3, into, out).permute(3, 2, 0, 1)


def _tiles(x: Tensor) -> tuple[int, int]:
    return -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)


def _around(x: Tensor) -> Tensor:
    """x, channels last, (B, H', W', I), with the zeros around it that tiles reach into."""
    height, width = x.shape[2:]
    tall, wide = _tiles(x)
    around = (1, 1 + TILE * wide - width, 1, 1 + TILE * tall - height)
    return F.pad(x.to(memory_format=torch.channels_last), around).permute(0, 2, 3, 1)


def _bands(x: Tensor, channels: int) -> Iterator[slice]:
    """Rows of places, a few rows of tiles at a time."""
    tall, wide = _tiles(x)
    rows = max(1, _BAND // (36 * x.element_size() * len(x) * wide * channels))
    for first in range(0, tall, rows):
        yield slice(TILE * first, TILE * min(first + rows, tall))


def _read(seen: Tensor, band: slice) -> Tensor:
    """What tiles of 6 x 6 become, (36, tiles, I)."""
    tiles = seen[:, band.start : band.stop + 2].unfold(1, 6, TILE).unfold(2, 6, TILE)
    read = torch.kron(_READ, _READ).to(seen)
    return (read @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)).view(36, -1, seen.shape[3])
