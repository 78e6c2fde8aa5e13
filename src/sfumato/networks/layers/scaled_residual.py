"""Residual blocks of score-based U-Nets, which keep the size of features by scaling."""

from __future__ import annotations

import math

from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.normalization import GroupNorm

_EPS = 1e-6
RESCALE = math.sqrt(0.5)
"""Of the sum of two features of the same size, so that it has that size too."""


class ScaledResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input over sqrt 2; attention may follow.

    As ADM's residual block, with the filter of `Halve` and `Double` where it resamples, and a projection of
    the input there too.

    Song et al. 2021, arXiv:2011.13456, appendix H; Brock, Donahue & Simonyan 2019, "Large Scale GAN
    Training", arXiv:1809.11096 (resampling inside the block).

    Args:
        channels: of the map that comes in, (B, C, H, W).
        out_channels: of the map that goes out.
        embedding: width of the time embedding.
        dropout: share of features zeroed before the last convolution.
        attention: whether attention follows.
        resample: halves or doubles the map on its way.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attention: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.site = Site("", "residual")
        self.norm0 = grouped(channels)
        self.resample = resample
        self.conv0 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding, out_channels)
        self.norm1 = grouped(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels and resample is None
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        self.attention: SpatialAttention | None = None
        if attention:
            self.attention = SpatialAttention(out_channels, 1)
            self.attention.norm = grouped(out_channels)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Feature map (B, C, H, W) → (B, out, H, W), or half or twice the height and width."""
        if context.hooks is None:
            h = self._run(h, context)
        else:
            h = context.hooks.block(self.site, context, lambda h: self._run(h, context), h)
        return h if self.attention is None else self.attention(h, context) * RESCALE

    def _run(self, h: Tensor, context: Context) -> Tensor:
        inner = nn.functional.silu(self.norm0(h))
        if self.resample is not None:
            inner, h = self.resample(inner), self.resample(h)
        inner = self.conv0(inner) + self.affine(context.embedding)[:, :, None, None]
        inner = self.conv1(self.dropout(nn.functional.silu(self.norm1(inner))))
        return (self.skip(h) + inner) * RESCALE


def grouped(channels: int) -> GroupNorm:
    """Groups of at least four channels, 32 at the most."""
    groups = min(32, channels // 4)
    if not groups or channels % groups:
        raise InvalidInput(
            f"{channels} channels do not fall into groups of at least four, 32 at the most",
            where="ncsnpp.channels, multipliers",
            do="take a multiple of 4 up to 128, of 32 above",
        )
    norm = GroupNorm(channels, _EPS)
    norm.num_groups = groups
    return norm
