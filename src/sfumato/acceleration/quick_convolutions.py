"""Quick convolutions: three by three in training on a CPU, by Winograd, or without the zeros around."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as usual

from sfumato.acceleration import small_maps
from sfumato.acceleration.winograd import TILE, able, transformed, weight_gradient, winograd

_CHANNELS, _TILES, _WORK = 64, 64, 1 << 14
"""Of fewer channels, fewer tiles in a batch, or less of both multiplied, Winograd gains nothing."""
_DEEP, _DEEPER, _PLACES, _ROWS = 256, 512, 16, 1 << 13
"""Products by shifts gain of so many channels, in maps of so few places (or of any, of so many more
channels), where places in a batch times channels are as many."""


@contextmanager
def quick_convolutions(network: nn.Module) -> Iterator[None]:
    """Within, the network's convolutions of three by three are quicker where they can be, forth and back.

    By Winograd, which takes a fourth of the multiplications (results differ by rounding, some 1e-5 of the
    largest), or in small maps by products that leave out the zeros around (`small_maps`). Layers keep their
    parameters and names, and are the network's own again afterwards. Which goes which way follows from
    shapes alone, so that a run is the same again. Without Winograd's kernels (`winograd.able`) all stay as
    they are.
    """
    found = [layer for layer in network.modules() if type(layer) is nn.Conv2d and _fits(layer) and able()]
    for layer in found:
        layer.__class__ = QuickConv2d
    try:
        yield
    finally:
        for layer in found:
            layer.__class__ = nn.Conv2d


class QuickConv2d(nn.Conv2d):
    """A convolution of three by three, each batch the way that is quicker for its shape."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) → (B, O, H, W)."""
        other = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        if other or not (_tiled(x, self.weight) or _small(x, self.weight)):
            return super().forward(x)
        made: Tensor = _convolution(x, self.weight, self.bias)
        return made


def _fits(layer: nn.Conv2d) -> bool:
    same = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == layer.padding == (1, 1)
    one = layer.groups == 1 and layer.padding_mode == "zeros"
    wide = min(layer.in_channels, layer.out_channels) >= _CHANNELS
    hooked = layer._forward_pre_hooks or layer._forward_hooks or layer._backward_hooks
    return same and one and wide and not hooked


def _tiled(x: Tensor, weight: Tensor) -> bool:
    """Whether Winograd is quicker, of a map given or of the result's gradient."""
    height, width = x.shape[2:]
    tiles = len(x) * -(-height // TILE) * -(-width // TILE)
    return min(height, width) >= TILE and tiles >= _TILES and tiles * min(weight.shape[:2]) >= _WORK


def _small(x: Tensor, weight: Tensor) -> bool:
    """Whether products by shifts are quicker."""
    channels, places = min(weight.shape[:2]), x.shape[2] * x.shape[3]
    deep = channels >= (_DEEP if places <= _PLACES else _DEEPER)
    return deep and len(x) * places * channels >= _ROWS


# Operators, which torch.compile takes as they are.


@torch.library.custom_op("sfumato::convolution", mutates_args=())
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _tiled(x, weight):
        return winograd(x, transformed(weight), bias)
    return small_maps.convolved(x, weight, bias)


@torch.library.custom_op("sfumato::convolution_of_x", mutates_args=())
def _of_x(gradient: Tensor, weight: Tensor) -> Tensor:
    if _tiled(gradient, weight):
        return winograd(gradient, transformed(weight, turned=True))
    return small_maps.gradient_of_x(gradient, weight)


@torch.library.custom_op("sfumato::convolution_of_weight", mutates_args=())
def _of_weight(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    if _tiled(x, weight):
        return weight_gradient(x, gradient)
    return small_maps.gradient_of_weight(x, gradient)


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _channels_last(x, len(x), weight.shape[0], *x.shape[2:])


@_of_x.register_fake
def _(gradient: Tensor, weight: Tensor) -> Tensor:
    return _channels_last(gradient, len(gradient), weight.shape[1], *gradient.shape[2:])


@_of_weight.register_fake
def _(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    return _channels_last(x, *weight.shape)


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, weight and bias; gradients of these are the plain convolution's."""
    x, weight = ctx.saved_tensors
    of_x = of_weight = of_bias = None
    if torch.is_grad_enabled():
        found: Any = usual
        if ctx.needs_input_grad[0]:
            of_x = found.conv2d_input(x.shape, weight, gradient, padding=1)
        if ctx.needs_input_grad[1]:
            of_weight = found.conv2d_weight(x, weight.shape, gradient, padding=1)
    else:
        of_x = _of_x(gradient, weight) if ctx.needs_input_grad[0] else None
        of_weight = _of_weight(x, gradient, weight) if ctx.needs_input_grad[1] else None
    if ctx.needs_input_grad[2]:
        of_bias = gradient.sum((0, 2, 3))
    return of_x, of_weight, of_bias


_convolution.register_autograd(_gradients, setup_context=_keep)
