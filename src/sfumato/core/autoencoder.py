"""Autoencoder: the contract of what makes latents of pictures and pictures of latents."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from sfumato.core.posterior import Posterior

Precision = Literal["float32", "bfloat16", "float16"]
"""The least numbers an autoencoder computes in: more where its weights are held in more."""


class Autoencoder(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, channels, H / factor, W / factor) and back."""

    channels: int
    precision: Precision

    @property
    def factor(self) -> int:
        """How many pixels, along a side, make one place of the latents."""
        ...

    def encode(self, image: Tensor) -> Posterior:
        """What latents a picture may have."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The picture of latents, not clamped."""
        ...
