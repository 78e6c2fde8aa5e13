"""Space: where diffusion happens, and the way there from pictures and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from sfumato.core.noise import Noise


class Space(Protocol):
    """Maps images (B, C, H, W) in [-1, 1] to x and back."""

    @property
    def image_channels(self) -> int:
        """C of its images."""
        ...

    @property
    def step(self) -> int:
        """Height and width of its images must divide by it."""
        ...

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Images to x; with noise, one seed a row, a draw where x is not determined (an autoencoder's
        posterior), else its mean.
        """
        ...

    def decode(self, x: Tensor) -> Tensor:
        """x to images."""
        ...

    def preview(self, x: Tensor) -> Tensor:
        """What the pictures of x look like, cheaply: (B, C, ..) in [-1, 1], at whatever size comes easily."""
        ...

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape (C, h, w) of one x for a picture of this size in pixels; InvalidInput where it cannot be."""
        ...
