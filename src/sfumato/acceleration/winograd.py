"""Winograd's convolution: three by three with a quarter of the multiplications."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sfumato.acceleration.native import native

TILE = 4
"""Places along a side of what one tile makes; it reads two more."""
_BAND, _LEAST = 2 << 20, 128
"""Bytes of one of the stages of a band of tiles, so that they stay in the cache; but not fewer tiles than are
worth reading a kernel for."""
_OWN, _PAGE = 32 << 20, 4096
"""Bytes from which on a tensor's memory is the system's own for it, and of a page."""


def able() -> bool:
    """Whether its kernels are to be had here: they take a compiler (`acceleration.native`)."""
    return _kernels() is not None


def transformed(weight: Tensor, turned: bool = False) -> Tensor:
    """A kernel (O, I, 3, 3) as `winograd` multiplies by it: (36, I, O), four times the bytes.

    One matrix for each of the 36 numbers that a tile of 6 x 6 becomes.

    Args:
        weight: float32 or float64, on a CPU.
        turned: about its middle, to bring a gradient back from O to I: (36, O, I).
    """
    out, into = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last if turned else torch.contiguous_format)
    kernel = _matrices(weight, *((out, into) if turned else (into, out)))
    _call("turned" if turned else "kernel", (weight, kernel), out, into, kernel.stride(0))
    return kernel


def winograd(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x (B, I, H, W) by a transformed kernel, zeros around it: (B, O, H, W).

        y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A,    summed over I, for tiles d of 6 x 6 that overlap by 2

    Each tile makes 4 x 4 places with 36 multiplications in place of 144. In float32 it is off by some 5e-6 of
    the largest value, the direct sum by 1e-6. Works on channels last, which its result is laid out as; any
    height and width.

    Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, section 4.3.

    Args:
        x: float32 or float64, on a CPU.
        kernel: (36, I, O), of that type, as the bias.
        bias: (O,).
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, into, height, width = x.shape
    out = kernel.shape[2]
    made = torch.empty(batch, out, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    for first, last, read, sums in _bands(x, into, out):
        _of_tiles("read", x, read, first, last)
        torch.bmm(read, kernel, out=sums)
        _call("write", (sums, made, bias), height, width, out, first, last, sums.stride(0))
    return made


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the kernel (O, I, 3, 3), of x (B, I, H, W) and that of the result (B, O, H, W).

    Gᵀ [ Σ (A e Aᵀ) (Bᵀ d B)ᵀ ] G,    summed over tiles d of x and e, of 4 x 4, of the gradient
    """
    x, gradient = (each.contiguous(memory_format=torch.channels_last) for each in (x, gradient))
    into, out = x.shape[1], gradient.shape[1]
    sums = _matrices(x, out, into).zero_()
    for first, last, read, parts in _bands(x, into, out):
        _of_tiles("read", x, read, first, last)
        _of_tiles("spread", gradient, parts, first, last)
        sums.baddbmm_(parts.transpose(1, 2), read)
    made = torch.empty(out, into, 3, 3, dtype=x.dtype, memory_format=torch.channels_last)
    _call("gradient", (sums, made), out, into, sums.stride(0))
    return made


def _bands(x: Tensor, into: int, out: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Tiles, as many at a time as stay in the cache: first and last, and room for two stages of them."""
    count = len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
    each = min(count, max(_LEAST, _BAND // (36 * x.element_size() * max(into, out))))
    room = _matrices(x, each, into), _matrices(x, each, out)
    for first in range(0, count, each):
        last = min(first + each, count)
        yield first, last, room[0][:, : last - first], room[1][:, : last - first]


def _matrices(like: Tensor, rows: int, columns: int) -> Tensor:
    """Room for 36 (rows, columns), a line of the cache farther apart than they are large.

    A power of two apart, all would fall on the same few lines.
    """
    size = rows * columns
    made = torch.empty(36, size + 16, dtype=like.dtype)
    if made.nbytes >= _OWN:
        # Asked for before it is touched, which large pages halve the time of.
        first = -(-made.data_ptr() // _PAGE) * _PAGE
        _memory().madvise(first, made.nbytes - 2 * _PAGE, mmap.MADV_HUGEPAGE)
    return made[:, :size].view(36, rows, columns)


def _of_tiles(name: str, x: Tensor, made: Tensor, first: int, last: int) -> None:
    _, channels, height, width = x.shape
    _call(name, (x, made), height, width, channels, first, last, made.stride(0))


def _call(name: str, given: tuple[Tensor, *tuple[Tensor | None, ...]], *told: int) -> None:
    kernel = getattr(_kernels(), f"{name}_{str(given[0].dtype).removeprefix('torch.')}")
    places = (None if each is None else ctypes.c_void_p(each.data_ptr()) for each in given)
    kernel(*places, *map(ctypes.c_long, told), torch.get_num_threads())


@cache
def _memory() -> Any:
    found: Any = ctypes.CDLL(None)
    found.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found


@cache
def _kernels() -> Any:
    return native("winograd.cpp")
