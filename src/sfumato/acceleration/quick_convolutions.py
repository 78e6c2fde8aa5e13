"""Quick convolutions: three by three by Winograd in training, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as usual

from sfumato.acceleration.winograd import TILE, able, transformed, weight_gradient, winograd

_CHANNELS, _TILES, _WORK = 64, 64, 1 << 14
"""Of fewer channels, fewer tiles in a batch, or less of both multiplied, the plain one is as fast."""


@contextmanager
def quick_convolutions(network: nn.Module) -> Iterator[None]:
    """Within, the network's convolutions of three by three go by Winograd where it pays, forth and back.

    A fourth of the multiplications in the layer, in the gradient of what it is given and in that of its
    weights; results differ by rounding (some 1e-5 of the largest). Layers keep their parameters and names,
    and are the network's own again afterwards. Which go that way follows from shapes alone, so that a run is
    the same again. Without its kernels (`winograd.able`) all stay as they are.
    """
    found = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Conv2d and _fits(layer) and able()
    ]
    for parent, name, layer in found:
        parent._modules[name] = WinogradConv2d.of(layer)
    try:
        yield
    finally:
        for parent, name, layer in found:
            parent._modules[name] = layer


class WinogradConv2d(nn.Conv2d):
    """A convolution of another's parameters, by Winograd where that is faster."""

    @staticmethod
    def of(layer: nn.Conv2d) -> WinogradConv2d:
        """Of a layer."""
        made = WinogradConv2d(
            layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None, device="meta"
        )
        made._parameters, made.training = layer._parameters, layer.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) → (B, O, H, W)."""
        other = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        tiles = len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
        if other or tiles < _TILES or tiles * min(self.weight.shape[:2]) < _WORK:
            return super().forward(x)
        made: Tensor = _Winograd.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made


class _Winograd(torch.autograd.Function):
    """winograd(x, weight, bias) with its gradients; gradients of these are the plain convolution's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return winograd(x, transformed(weight), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, bias = ctx.needs_input_grad, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():
            found: Any = usual
            of_x = found.conv2d_input(x.shape, weight, gradient, padding=1) if wanted[0] else None
            of_weight = found.conv2d_weight(x, weight.shape, gradient, padding=1) if wanted[1] else None
            return of_x, of_weight, bias
        of_x = winograd(gradient, transformed(weight, turned=True)) if wanted[0] else None
        return of_x, weight_gradient(x, gradient) if wanted[1] else None, bias


def _fits(layer: nn.Conv2d) -> bool:
    same = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == layer.padding == (1, 1)
    one = layer.groups == 1 and layer.padding_mode == "zeros"
    wide = min(layer.in_channels, layer.out_channels) >= _CHANNELS
    hooked = layer._forward_pre_hooks or layer._forward_hooks or layer._backward_hooks
    return same and one and wide and not hooked
