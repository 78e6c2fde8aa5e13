"""Residual blocks of U-Nets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.normalization import GroupNorm, NormSiLU, zeroed
from sfumato.networks.layers.resample import Downsample, Upsample


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input; can halve or double the map on its way.

    Norm, SiLU, (resampling), convolution; the embedding added, or scaling and shifting after the second norm;
    SiLU, dropout and a zero-initialised convolution. Starts as the identity (or its 1 x 1 projection).

    Dhariwal & Nichol 2021, arXiv:2105.05233, section 3; Ho et al. 2020, arXiv:2006.11239.

    Args:
        channels: C of the map that comes in, (B, C, H, W).
        out_channels: of the map that goes out.
        embedding: width of the time embedding.
        dropout: share of features zeroed before the last convolution.
        scale_shift: adaptive group norm rather than addition.
        resample: halve ("down") or double ("up") the map, without weights of its own.
        eps: of the group norms.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.site = Site("", "residual")
        self.scale_shift = scale_shift
        self.resample: nn.Module | None = None
        if resample is not None:
            self.resample = Upsample(channels, False) if resample == "up" else Downsample(channels, False)
        # Where a norm and what follows it are one, the published names still count two.
        self.in_layers = nn.Sequential(
            NormSiLU(channels, eps), nn.Identity(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding, 2 * out_channels if scale_shift else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, eps) if scale_shift else NormSiLU(out_channels, eps),
            nn.SiLU() if scale_shift else nn.Identity(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Feature map (B, C, H, W) → (B, out, H, W), or half or twice the height and width."""
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        norm, _, conv = self.in_layers
        inner = norm(h)
        if self.resample is not None:
            inner, h = self.resample(inner), self.resample(h)
        inner = conv(inner)
        told = self.emb_layers(context.embedding)[:, :, None, None]
        norm, act, dropout, conv = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            inner = torch.addcmul(shift, norm(inner), 1 + scale)
        else:
            inner = norm(inner + told)
        inner = conv(dropout(act(inner)))
        return self.skip_connection(h) + inner
