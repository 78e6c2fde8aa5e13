"""Group normalisation in float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation, statistics in float32 at least whatever the input's dtype.

    As many groups as asked for where the channels divide by them, 32 in every published network; else the
    most that divides both.

    Wu & He 2018, arXiv:1803.08494.
    """

    def __init__(self, channels: int, eps: float = 1e-5, groups: int = 32) -> None:
        super().__init__(math.gcd(groups, channels), channels, eps)

    def forward(self, input: Tensor) -> Tensor:
        wide = input if input.dtype == torch.float64 else input.float()
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(wide, self.num_groups, weight, bias, self.eps).to(input)


class NormSiLU(GroupNorm):
    """Group normalisation followed by x sigmoid(x), which is how residual blocks begin."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(super().forward(input))


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all its parameters 0, so that what it adds starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
