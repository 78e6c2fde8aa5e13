"""Layers whose weights were laid out once, as a machine multiplies them fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.acceleration.int8 import int8_convolution, int8_linear, quantizable
from sfumato.acceleration.winograd import able, transformed, winograd

Way = Callable[[Tensor], Tensor]
"""A layer as a function of what it is given, its weights laid out within."""
_GAIN = 0.95
"""What share of the plain layer's time a way may take at the most, to be worth its memory."""


_BRIEF = 0.02
"""Seconds that a way is tried for."""


class Packed:
    """A layer's weights in another order, and what they were when they were brought into it.

    Copies of the layer share it: it is never changed. `bytes` is what it takes beside the layer's weights.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, name: str, way: Way) -> None:
        self.way, self.of = way, _state(layer)
        self.bytes = int(layer.weight.nbytes * {"": 0, "matrix": 0, "winograd": 4, "int8": 0.25}.get(name, 1))

    def __deepcopy__(self, memo: Any) -> Packed:
        return self

    def serves(self, layer: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
        """Whether it says what the layer would: weights are as they were, and nobody asks for gradients."""
        wanted = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        return plain and not wanted and self.of == _state(layer)


class PackedConv2d(nn.Conv2d):
    """A convolution that shares another's weights, and goes the packed way wherever that is the same."""

    packed: Packed

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) → (B, O, H', W')."""
        return self.packed.way(x) if self.packed.serves(self, x) else super().forward(x)


class PackedLinear(nn.Linear):
    """Likewise a linear layer."""

    packed: Packed

    def forward(self, x: Tensor) -> Tensor:
        """(.., I) → (.., O)."""
        return self.packed.way(x) if self.packed.serves(self, x) else super().forward(x)


PACKED = (PackedConv2d, PackedLinear)


def packed(layer: nn.Conv2d | nn.Linear, way: str, shape: tuple[int, ...]) -> nn.Module:
    """A layer that goes a way of `ways`, for inputs of a shape and right for all."""
    made: PackedConv2d | PackedLinear
    if isinstance(layer, nn.Conv2d):
        told = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        made = PackedConv2d(layer.in_channels, layer.out_channels, **told, bias=False, device="meta")
    else:
        made = PackedLinear(layer.in_features, layer.out_features, bias=False, device="meta")
    made.weight, made.bias, made.training = layer.weight, layer.bias, layer.training
    made.packed = Packed(layer, way, ways(layer, shape)[way]())
    return made


def packable(layer: nn.Module) -> bool:
    """Whether it is a layer whose weights can be packed: on a CPU, of float32, in one group, without hooks.

    Hooks of PyTorch's own would be gone past, as would what a derived layer does otherwise.
    """
    if type(layer) is nn.Conv2d:
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    else:
        plain = type(layer) is nn.Linear
    weight = layer.weight if plain and not (layer._forward_hooks or layer._forward_pre_hooks) else None
    return isinstance(weight, Tensor) and weight.device.type == "cpu" and weight.dtype == torch.float32


def ways(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> Mapping[str, Callable[[], Way]]:
    """What makes each way a layer can go, by name: its weights are laid out when that is called.

    "" a convolution as it is, but with channels brought to stand last, as all others have them; "matrix" one
    of one by one as a matrix product over places, whose weights stay too;
    "onednn" oneDNN's own order, which PyTorch brings weights into anew at every call; "winograd" a fourth of
    the multiplications; "int8", the last and the only one that is not the same but for rounding, products of
    eight bits, where that can pay.
    """
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    found: dict[str, Callable[[], Way]] = {}
    if isinstance(layer, nn.Linear):
        if _onednn():
            found["onednn"] = partial(_onednn_linear, weight, bias, shape)
            if quantizable(layer, shape):
                found["int8"] = partial(int8_linear, weight, bias, shape)
        return found
    found[""] = partial(_channels_last, weight, bias, layer)
    same = layer.stride == (1, 1) and layer.dilation == (1, 1)
    if same and layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        found["matrix"] = partial(_matrix, weight, bias)
    if same and layer.kernel_size == (3, 3) and layer.padding == (1, 1) and able():
        found["winograd"] = lambda: partial(winograd, kernel=transformed(weight), bias=bias)
    if _onednn():
        places: tuple[Any, ...] = (layer.padding, layer.stride, layer.dilation)
        padding, stride, dilation = map(list, places)
        found["onednn"] = partial(_onednn_convolution, weight, bias, [padding, stride, dilation, 1], shape)
        if quantizable(layer, shape):
            found["int8"] = partial(int8_convolution, weight, bias, [stride, padding, dilation, 1], shape)
    return found


def fastest(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], able: Sequence[str]) -> str:
    """The name of the way, of those named, that takes this machine the least time for inputs of a shape.

    Ways take turns, so that what else the machine does meets all of them, and the best try counts. Each is
    tried twice, or as often as twenty milliseconds allow; where the best takes longer, one that takes half as
    long again is not tried anew. "int8", which costs more than rounding, has to be worth it. "" is the layer
    as it is.
    """
    x = torch.randn(shape)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    known = ways(layer, shape)
    tried: dict[str, Way] = {"": layer, **{each: known[each]() for each in able}}
    times: dict[str, list[float]] = {name: [] for name in tried}

    def undecided(name: str) -> bool:
        spent, best = times[name], min((min(each) for each in times.values() if each), default=0.0)
        if len(spent) < 2:
            return not spent or best < _BRIEF or spent[0] <= 1.5 * best
        return sum(spent) < _BRIEF

    while wanted := [name for name in tried if undecided(name)]:
        for name in wanted:
            start = time.perf_counter()
            tried[name](x)
            times[name].append(time.perf_counter() - start)
    best, name = _GAIN * min(times[""]), ""
    for each in able:
        seconds = min(times[each])
        if seconds < best * (_GAIN if each == "int8" else 1):
            best, name = seconds, each
    return name


def _state(layer: nn.Conv2d | nn.Linear) -> tuple[tuple[int, int], ...]:
    held = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in held)


def _onednn() -> bool:
    return bool(torch._C._has_mkldnn)


def _channels_last(weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Way:
    told: tuple[Any, ...] = (weight, bias, layer.stride, layer.padding, layer.dilation)
    return lambda x: F.conv2d(x.contiguous(memory_format=torch.channels_last), *told)


def _matrix(weight: Tensor, bias: Tensor | None) -> Way:
    matrix = weight.flatten(1)
    return lambda x: F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)


def _onednn_convolution(weight: Tensor, bias: Tensor | None, told: list[Any], shape: tuple[int, ...]) -> Way:
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    laid = reorder(weight.to_mkldnn(), *told, list(shape))
    run: Any = torch.ops.mkldnn._convolution_pointwise

    def way(x: Tensor) -> Tensor:
        last = x.contiguous(memory_format=torch.channels_last)
        made: Tensor = run(last, laid, bias, *told, "none", [], "")
        return made

    return way


def _onednn_linear(weight: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Way:
    rows = 1
    for side in shape[:-1]:
        rows *= side
    laid = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    run: Any = torch.ops.mkldnn._linear_pointwise
    return lambda x: run(x, laid, bias, "none", [], "")
