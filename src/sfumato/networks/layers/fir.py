"""Halving and doubling of feature maps through a smoothing filter, so that they do not alias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput


def kernel(taps: tuple[int, ...]) -> Tensor:
    """The filter of two dimensions, (1, 1, n, n) and of sum 1, whose rows and columns are the taps.

    Raises:
        InvalidInput: taps that are not symmetric, of even number and of a sum above 0.
    """
    if len(taps) < 2 or len(taps) % 2 or tuple(taps) != tuple(reversed(taps)) or sum(taps) <= 0:
        raise InvalidInput(
            f"{list(taps)} is no even and symmetric filter", where="taps", do="give [1, 1] or [1, 3, 3, 1]"
        )
    row = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(row, row) / row.sum() ** 2)[None, None]


class Halve(nn.Module):
    """Half the size: every second value of the map smoothed by a filter, zeros around it.

        y[i] = Σ_j k[j] x[2i + j - (n - 2) / 2],   j = 0 .. n-1,   along rows and columns alike

    The taps (1, 1) make it the mean of four; (1, 3, 3, 1) is the filter of StyleGAN2 and NCSN++.

    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv:1912.04958; Zhang 2019,
    "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486.

    Args:
        taps: the filter along one dimension, even in number.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel(taps), persistent=False)
        self.plain = len(taps) == 2

    def forward(self, h: Tensor) -> Tensor:
        if self.plain:
            return F.avg_pool2d(h, 2)
        return _smoothed(h, self.kernel, stride=2, padding=self.kernel.shape[-1] // 2 - 1)


class Double(nn.Module):
    """Twice the size: zeros between the values of the map, smoothed by a filter of gain 4.

        y[2i + j - (n - 2) / 2] += 2 k[j] x[i],   j = 0 .. n-1,   along rows and columns alike

    It is the transpose of `Halve`, times 4. The taps (1, 1) make it every value four times.

    Args:
        taps: the filter along one dimension, even in number.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel(taps), persistent=False)
        self.plain = len(taps) == 2

    def forward(self, h: Tensor) -> Tensor:
        if self.plain:
            return F.interpolate(h, scale_factor=2.0, mode="nearest")
        channels, padding = h.shape[1], self.kernel.shape[-1] // 2 - 1
        weight = (4 * self.kernel).to(h.dtype).expand(channels, -1, -1, -1)
        return F.conv_transpose2d(h, weight, stride=2, padding=padding, groups=channels)


class HalvingConv(nn.Conv2d):
    """Half the size: a map smoothed by a filter, then a 3 x 3 convolution at every second place.

    Zeros are put around the map once, before both.

    Args:
        channels: of the map that comes in, (B, C, H, W).
        out_channels: of the map that goes out.
        taps: the filter along one dimension, even in number.
    """

    kernel: Tensor

    def __init__(self, channels: int, out_channels: int, taps: tuple[int, ...]) -> None:
        super().__init__(channels, out_channels, 3, 2)
        self.register_buffer("kernel", kernel(taps), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_smoothed(input, self.kernel, padding=self.kernel.shape[-1] // 2))


def _smoothed(h: Tensor, kernel: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Every channel convolved with the same kernel (1, 1, n, n)."""
    channels = h.shape[1]
    weight = kernel.to(h.dtype).expand(channels, -1, -1, -1)
    return F.conv2d(h, weight, stride=stride, padding=padding, groups=channels)
