"""Coder: an autoencoder as a model of its own, while it is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import Data
from sfumato.core.process import Process


class Coder(NetworkDenoiser):
    """An autoencoder that stands where a denoiser stands in a model.

    So it is trained, saved, loaded and measured as one, on pixels, and refuses to denoise. It knows no
    process: times mean nothing to it.

    Args:
        network: the autoencoder.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, Process(), Data())

    def forward(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        """No autoencoder says the data behind noise: always InvalidInput."""
        raise no_pictures()

    def reconstruct(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] there and back, not clamped.

        Args:
            image: as the autoencoder takes them.
            noise: for a draw of the posterior; its mean if not given.
        """
        network: Any = self.network
        posterior = network.encode(image)
        made: Tensor = network.decode(posterior.mean if noise is None else posterior.sample(noise))
        return made


def no_pictures() -> InvalidInput:
    """The error of whoever samples from an autoencoder."""
    return InvalidInput(
        "an autoencoder alone makes no pictures of noise",
        where="model",
        do='train a model on its latents: space {"name": "latent", "autoencoder": {"from": FOLDER}}',
    )
