"""Pixel space: diffusion on the pictures themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Pixel:
    """Pictures as they are: x is the image, in [-1, 1].

    Args:
        channels: 3 for colour, 1 for grey, 4 with alpha.
        multiple: height and width must be multiples of this, the network's downsampling.
    """

    channels: int = 3
    multiple: int = 8

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], unchanged."""
        if image.shape[1] != self.channels:
            raise InvalidInput(
                f"{image.shape[1]} channels where the model has {self.channels}", where="image"
            )
        return image

    def decode(self, x: Tensor) -> Tensor:
        """x, clamped to [-1, 1]."""
        return x.clamp(-1, 1)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, height, width)."""
        if height < 1 or width < 1 or height % self.multiple or width % self.multiple:
            raise InvalidInput(
                f"{width} x {height} is not a multiple of {self.multiple} pixels",
                where="size",
                do=f"try {max(round(width / self.multiple), 1) * self.multiple} x "
                f"{max(round(height / self.multiple), 1) * self.multiple}",
            )
        return self.channels, height, width
