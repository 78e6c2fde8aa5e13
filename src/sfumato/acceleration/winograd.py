"""Winograd's convolution: three by three with a quarter of the multiplications."""

from __future__ import annotations

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
    kernel = torch.kron(_KERNEL, _KERNEL).to(weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
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
    out = kernel.shape[2]
    tall, wide = -(-height // TILE), -(-width // TILE)
    around = (1, 1 + TILE * wide - width, 1, 1 + TILE * tall - height)
    seen = F.pad(x.to(memory_format=torch.channels_last), around).permute(0, 2, 3, 1)
    made = x.new_empty(batch, TILE * tall, TILE * wide, out)
    read = torch.kron(_READ, _READ).to(x)
    write = torch.kron(_WRITE, _WRITE).to(x)
    rows = max(1, _BAND // (36 * x.element_size() * batch * wide * max(into, out)))
    for first in range(0, tall, rows):
        band = slice(TILE * first, TILE * min(first + rows, tall))
        tiles = seen[:, band.start : band.stop + 2].unfold(1, 6, TILE).unfold(2, 6, TILE)
        parts = (read @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)).view(36, -1, into)
        sums = write @ torch.bmm(parts, kernel).view(36, -1)
        places = made[:, band].view(batch, -1, TILE, wide, TILE, out)
        places.copy_(sums.view(TILE, TILE, batch, -1, wide, out).permute(2, 3, 0, 4, 1, 5))
    if bias is not None:
        made += bias
    whole = made[:, :height, :width].permute(0, 3, 1, 2)
    return whole.contiguous(memory_format=torch.channels_last)
