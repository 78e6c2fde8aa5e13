"""MLP told the time by Fourier features: times of order 1 that sinusoids blur are told apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.networks.mlp import MLP
from sfumato.registry import build, describe


def fitted(network: MLP) -> float:
    """Mean squared error after learning sin(12 t) of t in [0, 1] alone."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
    x = torch.zeros(128, 1)

    def loss(time: Tensor) -> Tensor:
        return (network(x, time, Condition()) - (12 * time).sin()[:, None]).square().mean()

    for _ in range(60):
        optimizer.zero_grad()
        loss(torch.rand(128, generator=generator)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(loss(torch.linspace(0, 1, 128)))


def test_fast_changes_in_a_time_of_order_1_need_fourier_features() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fourier, sinusoids = fitted(MLP(dim=1, width=32, fourier=1.0)), fitted(MLP(dim=1, width=32))
    # Saying nothing scores .5; over six seeds Fourier features end below .04 and sinusoids above .43.
    assert fourier < 0.1
    assert sinusoids > 0.3


def test_the_features_are_those_of_the_frequencies_kept_with_the_weights() -> None:
    network = MLP(width=8, fourier=2.0)
    assert network.features is not None
    angles = 2 * math.pi * 0.3 * network.state_dict()["features.W"]
    seen: list[Tensor] = []
    network.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.zeros(1, 2), torch.tensor([0.3]), Condition())
    torch.testing.assert_close(seen[0][0], torch.cat((angles.sin(), angles.cos())), atol=1e-5, rtol=1e-5)


def test_settings() -> None:
    assert describe(build("network", {"name": "mlp", "fourier": 16})) == {"name": "mlp", "fourier": 16.0}
    assert "features.W" not in MLP().state_dict()
    with pytest.raises(InvalidInput, match="even width"):
        MLP(width=9, fourier=1.0)
