"""Spaces and models that conditioners are tried in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.posterior import Posterior
from sfumato.core.prediction import Velocity
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.processes.betas import Betas
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel


class Shuffle(nn.Module):
    """Places of 2 x 2 pixels as twelve channels, a weight times as large: an autoencoder without loss."""

    channels, factor, in_channels, precision = 12, 2, 3, "float32"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def encode(self, image: Tensor) -> Posterior:
        mean = F.pixel_unshuffle(image, 2) * self.weight
        return Posterior(mean, torch.full_like(mean, 2.0))

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z / self.weight, 2)


@pytest.fixture
def latent() -> Latent:
    """A latent space of twelve channels and factor 2."""
    return Latent(Shuffle(), channels=12, factor=2, multiple=2, scale=0.5, shift=0.25)


@pytest.fixture
def model_of() -> Callable[..., Model]:
    """Makes a small model of a conditioner that lays so many channels beside x."""

    def make(conditioner: Any, extra: int, space: Any = None, classes: int = 0) -> Model:
        space = space or Pixel(multiple=2)
        own = space.shape(16, 16)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = ADM(
                in_channels=own + extra,
                out_channels=own,
                channels=32,
                multipliers=(1, 2),
                blocks=1,
                attention=(2,),
                classes=classes,
            )
            # As made, a network says nothing: layers that begin at zero hide what it is told.
            for weight in [each for each in network.parameters() if not each.any()]:
                nn.init.normal_(weight, std=0.1)
        # Noise would be divided by an alpha of .07 at first, and the rounding of unlike machines with it.
        denoiser = NetworkDenoiser(network, Betas(), Velocity()).eval()
        return Model(denoiser, conditioner.eval(), space, {"size": [16, 16], "steps": 3})

    return make
