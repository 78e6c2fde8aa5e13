"""Alone: a part of a model as a model of its own, while it is trained, saved and measured."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import Data
from sfumato.core.process import Process


class Alone(NetworkDenoiser):
    """A network that stands where a denoiser stands in a model, and refuses to denoise.

    It knows no process: times mean nothing to it.

    Args:
        network: the part.
    """

    kind: ClassVar[str]
    """Of the part, which is also its key in a model's description."""
    what: ClassVar[str]
    instead: ClassVar[str]

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, Process(), Data())

    def forward(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        """It does not say the data behind noise: always InvalidInput."""
        raise self.refusal()

    def refusal(self) -> InvalidInput:
        """The error of whoever samples from it."""
        return InvalidInput(self.what, where="model", do=self.instead)


class Coder(Alone):
    """An autoencoder, on pixels."""

    kind = "autoencoder"
    what = "an autoencoder alone makes no pictures of noise"
    instead = 'train a model on its latents: space {"name": "latent", "autoencoder": {"from": FOLDER}}'

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


class Reader(Alone):
    """An encoder of texts, of pictures, or of both."""

    kind = "encoder"
    what = "an encoder alone makes no pictures"
    instead = 'tell a model with it: conditioner {"name": "text_small", "encoder": {"from": FOLDER}}'


class Guide(Alone):
    """A control: what reads hints, pictures or boxes beside a network, without the network."""

    kind = "control"
    what = "a control alone makes no pictures"
    instead = "join it with a model: sfumato.controlled(model, control), or sfumato.prompted of image prompts"


ALONE: dict[str, type[Alone]] = {each.kind: each for each in (Coder, Reader, Guide)}
"""By their key in a model's description, which is the kind of the part."""
