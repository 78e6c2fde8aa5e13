"""Pixel space: diffusion on the pictures themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise


@dataclass(frozen=True)
class Pixel:
    """Pictures as they are: x is the image, in [-1, 1], or its patches stacked as channels.

    Stacking patches is a mere reordering (noise stays noise), and lets a small network spend its time on a
    quarter of the places with four times the channels; simple diffusion, Hoogeboom, Heek & Salimans 2023,
    arXiv:2301.11093, section 2.3.

    Args:
        channels: 3 for colour, 1 for grey, 4 with alpha.
        patch: side of the patches stacked as channels; x is (B, channels · patch², H / patch, W / patch).
        multiple: height and width must be multiples of this, the network's downsampling.
    """

    channels: int = 3
    patch: int = 1
    multiple: int = 8

    @property
    def image_channels(self) -> int:
        """As many as `channels`."""
        return self.channels

    @property
    def step(self) -> int:
        """As `multiple` says."""
        return self.multiple

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to x."""
        if image.shape[1] != self.channels:
            raise InvalidInput(
                f"{image.shape[1]} channels where the model has {self.channels}", where="image"
            )
        return F.pixel_unshuffle(image, self.patch) if self.patch > 1 else image

    def decode(self, x: Tensor) -> Tensor:
        """x to images, clamped to [-1, 1]."""
        return (F.pixel_shuffle(x, self.patch) if self.patch > 1 else x).clamp(-1, 1)

    def preview(self, x: Tensor) -> Tensor:
        """The pictures themselves."""
        return self.decode(x)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels · patch², height / patch, width / patch)."""
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise InvalidInput(
                f"{width} x {height} is not a multiple of {self.multiple} pixels",
                where="size",
                do=f"try {max(round(width / self.multiple), 1) * self.multiple} x "
                f"{max(round(height / self.multiple), 1) * self.multiple}",
            )
        return self.channels * self.patch**2, height // self.patch, width // self.patch
