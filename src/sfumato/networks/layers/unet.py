"""The whole of a U-Net: ADM's way down and middle, and the way up that mirrors it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.networks.layers.encoder import Encoder, Stage
from sfumato.networks.layers.normalization import NormSiLU, zeroed
from sfumato.networks.layers.resample import Upsample


class UNet(Encoder):
    """An encoder, and stages of ever larger maps that are shown what the encoder made at their size.

    A network derives from it, with these settings as its fields, and calls `name_sites` once it is built.
    Parameters are named `output_blocks` and `out` beside the encoder's, as published.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233.

    Args:
        labels: length of the condition's vector; 0 for none.
    """

    out_channels: int

    def __init__(self, labels: int = 0) -> None:
        super().__init__(labels)
        skips, here, factor = list(self.widths), self.widths[-1], 2 ** (len(self.multipliers) - 1)
        self.output_blocks = nn.ModuleList()
        for number, multiplier in reversed(list(enumerate(self.multipliers))):
            for place in range(self.blocks + 1):
                there = int(multiplier * self.channels)
                stage = Stage([self._block(here + skips.pop(), there), *self._attention(there, factor)])
                here = there
                if number and place == self.blocks:
                    stage.append(self._block(here, here, "up") if self.resblock_updown else Upsample(here))
                    factor //= 2
                self.output_blocks.append(stage)
        out = zeroed(nn.Conv2d(self.widths[0], self.out_channels, 3, padding=1))
        self.out = nn.Sequential(NormSiLU(here, self.eps), nn.Identity(), out)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition → (B, out_channels, H, W)."""
        h, skips, context = self.encode(x, time, condition, residuals=len(self.input_blocks) + 1)
        if condition.residuals:
            *sides, middle = condition.residuals
            skips = [skip + side.to(skip) for skip, side in zip(skips, sides, strict=True)]
            h = h + middle.to(h)
        for stage in self.output_blocks:
            h = stage(torch.cat((h, skips.pop()), dim=1), context)
        return self.out(h)
