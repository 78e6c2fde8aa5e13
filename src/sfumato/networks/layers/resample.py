"""Halving and doubling of feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2 (padded evenly, or to the right and below as DDPM does) or
    a mean.

    Args:
        channels: of the map (B, C, H, W).
        learned: a convolution rather than a mean.
        lopsided: pad one row and column after the last rather than on every side.
    """

    def __init__(self, channels: int, learned: bool = True, lopsided: bool = False) -> None:
        super().__init__()
        self.lopsided = lopsided
        self.op = nn.Conv2d(channels, channels, 3, 2, 0 if lopsided else 1) if learned else nn.AvgPool2d(2)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(F.pad(h, (0, 1, 0, 1)) if self.lopsided else h)


class Upsample(nn.Module):
    """Twice the size: every value four times, then a convolution if learned.

    Args:
        channels: of the map (B, C, H, W).
        learned: smooth by a convolution.
    """

    def __init__(self, channels: int, learned: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else None

    def forward(self, h: Tensor) -> Tensor:
        h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        return h if self.conv is None else self.conv(h)
