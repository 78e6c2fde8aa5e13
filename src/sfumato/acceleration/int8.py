"""Eight bits: layers whose products are of whole numbers of eight bits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.acceleration.native import native

_NARROW = 16


def steps() -> int:
    """Into how many steps an input's range is cut.

    Without the instructions for it (VNNI) pairs of products are added in sixteen bits, which half the range
    keeps from overflowing. Of the 256, or 128, numbers one is left over for rounding.
    """
    return 254 if torch.cpu._is_vnni_supported() else 126


def quantizable(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> bool:
    """Whether enough is computed for it to pay: not where a network is entered or left, or told the time."""
    rows = math.prod(shape[:-1]) if isinstance(layer, nn.Linear) else math.prod(shape[2:])
    return min(*layer.weight.shape[:2], rows) >= _NARROW


def int8_convolution(
    weight: Tensor, bias: Tensor | None, geometry: list[Any], shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """A convolution by kernels rounded channel by channel, of inputs rounded as they come.

        y = s_x s_o Σ q q_o + (b - s_x z s_o Σ q_o),    q = round(x / s_x) + z,    q_o = round(w_o / s_o)

    s_o is a 127th of the largest weight of an output's kernel; s_x and z lay the range of the whole input,
    with 0 in it, over `steps` numbers. So nothing has to be calibrated, and it serves every step of a walk.
    What z adds is taken off with the bias, and zeros beside the picture are laid there as z: told of z,
    oneDNN would sum the weights anew at every call, up to eight times the product's own time.

    Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", arXiv:1806.08342,
    sections 2.1 and 3.1.2, with the range of each input taken as it comes.

    Args:
        weight: (O, I, H, W).
        bias: (O,).
        geometry: stride, padding, dilation and groups.
        shape: of the inputs that it is laid out for; right for all.
    """
    rounded, scales = _rounded(weight)
    stride, (tall, wide), dilation, groups = geometry
    told = (stride, [0, 0], dilation, groups)
    padded = [*shape[:2], shape[2] + 2 * tall, shape[3] + 2 * wide]
    zeros, count, off = torch.zeros(len(weight), dtype=torch.int32), steps(), _off(rounded, scales, bias)
    laid = torch.ops.onednn.qconv_prepack(rounded, scales, 1.0, 0, *told, padded)
    run: Any = torch.ops.onednn.qconv2d_pointwise

    def way(x: Tensor) -> Tensor:
        numbers, scale, zero = _cut(x.contiguous(memory_format=torch.channels_last), count, tall, wide)
        given = (numbers, scale, 0, laid, scales, zeros, off(scale * zero), *told)
        made: Tensor = run(*given, 1.0, 0, torch.float32, "none", [], "")
        return made

    return way


def int8_linear(weight: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Likewise a linear layer of weight (O, I)."""
    rounded, scales = _rounded(weight)
    zeros, count, off = torch.zeros(len(weight), dtype=torch.int32), steps(), _off(rounded, scales, bias)
    laid = torch.ops.onednn.qlinear_prepack(rounded, [math.prod(shape[:-1]), shape[-1]])
    run: Any = torch.ops.onednn.qlinear_pointwise

    def way(x: Tensor) -> Tensor:
        numbers, scale, zero = _cut(x.contiguous(), count)
        given = (numbers, scale, 0, laid, scales, zeros, off(scale * zero))
        made: Tensor = run(*given, 1.0, 0, torch.float32, "none", [], "")
        return made

    return way


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, the largest of each row 127, and what one of them is worth, (O,)."""
    scales = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127
    rows = weight / scales.view(-1, *[1] * (weight.dim() - 1))
    return rows.round().to(torch.int8), scales


def _off(rounded: Tensor, scales: Tensor, bias: Tensor | None) -> Callable[[float], Tensor]:
    """The bias, (O,), less what numbers come to that are all of so much: it, times the sum of the weights."""
    sums = scales * rounded.flatten(1).sum(1, dtype=torch.int32)
    begin = torch.zeros_like(sums) if bias is None else bias
    return lambda each: torch.add(begin, sums, alpha=-each)


def _cut(x: Tensor, count: int, tall: int = 0, wide: int = 0) -> tuple[Tensor, float, int]:
    """Numbers of a byte, what one is worth, and which is 0, of x that is dense.

    Maps, their channels last, get borders of the number that is 0, so many rows and columns. It is a good
    part of the time of a layer: in two passes by kernels of our own, in five where there are none.
    """
    kernels = _kernels()
    if kernels is None:
        # As it lies in memory: in any other order PyTorch looks for the ends six times as long.
        least, most = (float(end) for end in x.as_strided((x.numel(),), (1,)).aminmax())
    else:
        ends = (ctypes.c_float * 2)()
        kernels.ends(x.data_ptr(), x.numel(), ends, torch.get_num_threads())
        least, most = ends
    least, most = min(least, 0.0), max(most, 0.0)
    if not math.isfinite(most - least):
        # What is no number makes none of all it is multiplied with.
        shape = (*x.shape[:-2], x.shape[-2] + 2 * tall, x.shape[-1] + 2 * wide)
        return _bytes(shape, x.dim()).zero_(), math.nan, 0
    scale = max((most - least) / count, torch.finfo(torch.float32).tiny)
    zero = round(-least / scale)
    # To the next whole number, since nothing is below 0 here.
    shift = zero + 0.5
    if kernels is None:
        numbers = torch.add(torch.tensor(shift), x, alpha=1 / scale).to(torch.uint8)
        return F.pad(numbers, (wide, wide, tall, tall), value=zero) if tall or wide else numbers, scale, zero
    *outer, rows, columns = x.shape
    numbers = _bytes((*outer, rows + 2 * tall, columns + 2 * wide), x.dim())
    # Places of a map are rows of channels.
    maps = (x.shape[0], rows, columns, x.shape[1]) if x.dim() == 4 else (1, 1, x.numel(), 1)
    kernels.cut(
        x.data_ptr(), numbers.data_ptr(), *maps, tall, wide, 1 / scale, shift, zero, torch.get_num_threads()
    )
    return numbers, scale, zero


def _bytes(shape: tuple[int, ...], dim: int) -> Tensor:
    order = torch.channels_last if dim == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=torch.uint8, memory_format=order)


@cache
def _kernels() -> Any:
    found: Any = native("int8.cpp")
    if found is not None:
        number, place = ctypes.c_long, ctypes.c_void_p
        found.ends.argtypes, found.ends.restype = [place, number, place, ctypes.c_int], None
        found.cut.argtypes = [*[place] * 2, *[number] * 6, *[ctypes.c_float] * 2, *[ctypes.c_int] * 2]
        found.cut.restype = None
    return found
