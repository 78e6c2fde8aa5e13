"""Latent space: diffusion on what an autoencoder makes of pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Latent:
    """Latents of an autoencoder that is not part of the model: they can be walked, not turned into pictures.

    x is (B, channels, H / factor, W / factor), scaled to unit variance as in training.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752.

    Args:
        channels: of the latents.
        factor: how many pixels, along a side, make one place.
        multiple: height and width of latents must divide by it, the network's patch or downsampling.
    """

    channels: int = 4
    factor: int = 8
    multiple: int = 1

    def encode(self, image: Tensor) -> Tensor:
        """Refused: pictures become latents by the autoencoder alone."""
        raise _no_autoencoder()

    def decode(self, x: Tensor) -> Tensor:
        """Refused: latents become pictures by the autoencoder alone."""
        raise _no_autoencoder()

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Refused before a walk is begun whose end nobody could see; `latent_shape` tells the shape."""
        raise _no_autoencoder()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height / factor, width / factor) of a picture of this size in pixels."""
        step = self.factor * self.multiple
        if height < 1 or width < 1 or height % step or width % step:
            raise InvalidInput(f"{width} x {height} is not a multiple of {step} pixels", where="size")
        return self.channels, height // self.factor, width // self.factor


def _no_autoencoder() -> InvalidInput:
    return InvalidInput(
        "this model makes latents, and the autoencoder that turns them into pictures is not part of it",
        where="space",
        do="walk the latents with sfumato.sample and decode them with the autoencoder its card names",
    )
