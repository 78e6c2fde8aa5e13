"""Space: where diffusion happens, and the way there from pictures and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Space(Protocol):
    """Maps images (B, C, H, W) in [-1, 1] to x and back."""

    def encode(self, image: Tensor) -> Tensor:
        """Images to x."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """x to images."""
        ...

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape (C, h, w) of one x for a picture of this size in pixels; InvalidInput where it cannot be."""
        ...
