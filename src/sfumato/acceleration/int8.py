"""Eight bits: layers whose products are of whole numbers of eight bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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

        y = s_x s_o Σ (q_x - z) q_o + b,    q = round(x / s_x) + z,    q_o = round(w_o / s_o)

    s_o is a 127th of the largest weight of an output's kernel; s_x and z lay the range of the whole input,
    with 0 in it, over `steps` numbers. So nothing has to be calibrated, and it serves every step of a walk.

    Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", arXiv:1806.08342,
    sections 2.1 and 3.1.2, with the range of each input taken as it comes.

    Args:
        weight: (O, I, H, W).
        bias: (O,).
        geometry: stride, padding, dilation and groups.
        shape: of the inputs that it is laid out for; right for all.
    """
    rounded, scales = _rounded(weight)
    stride, padding, dilation, groups = geometry
    told = (stride, padding, dilation, groups)
    zeros, count = torch.zeros(len(weight), dtype=torch.int32), steps()
    laid = torch.ops.onednn.qconv_prepack(rounded, scales, 1.0, 0, *told, list(shape))
    run: Any = torch.ops.onednn.qconv2d_pointwise

    def way(x: Tensor) -> Tensor:
        numbers, scale, zero = _cut(x.contiguous(memory_format=torch.channels_last), count)
        given = (numbers, scale, zero, laid, scales, zeros, bias, *told)
        made: Tensor = run(*given, 1.0, 0, torch.float32, "none", [], "")
        return made

    return way


def int8_linear(weight: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Likewise a linear layer of weight (O, I)."""
    rounded, scales = _rounded(weight)
    zeros, count = torch.zeros(len(weight), dtype=torch.int32), steps()
    laid = torch.ops.onednn.qlinear_prepack(rounded, [math.prod(shape[:-1]), shape[-1]])
    run: Any = torch.ops.onednn.qlinear_pointwise

    def way(x: Tensor) -> Tensor:
        numbers, scale, zero = _cut(x.contiguous(), count)
        given = (numbers, scale, zero, laid, scales, zeros, bias)
        made: Tensor = run(*given, 1.0, 0, torch.float32, "none", [], "")
        return made

    return way


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, the largest of each row 127, and what one of them is worth, (O,)."""
    scales = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 127) / 127
    rows = weight / scales.view(-1, *[1] * (weight.dim() - 1))
    return rows.round().to(torch.int8), scales


def _cut(x: Tensor, count: int) -> tuple[Tensor, float, int]:
    """Numbers of a byte, what one is worth, and which is 0."""
    least, most = (float(end) for end in x.aminmax())
    least, most = min(least, 0.0), max(most, 0.0)
    scale = max((most - least) / count, torch.finfo(torch.float32).tiny)
    zero = round(-least / scale)
    # To the next whole number, since nothing is below 0 here; in one pass and a second.
    return torch.add(torch.tensor(zero + 0.5), x, alpha=1 / scale).to(torch.uint8), scale, zero
