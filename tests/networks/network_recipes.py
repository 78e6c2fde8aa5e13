"""Numbers and weights drawn by recipe, for the tests of this folder."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", bound=nn.Module)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights by recipe, keys in order: N(0, 1 / fan-in), norms 1 + N(0, .1²), biases N(0, .1²)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key in sorted(state):
        draw = torch.randn(state[key].shape, generator=generator)
        if draw.ndim > 1:
            weights[key] = draw / math.sqrt(draw[0].numel())
        else:
            weights[key] = 1 + 0.1 * draw if key.endswith("weight") else 0.1 * draw
    return weights


def randomised(network: N, seed: int = 0) -> N:
    """The network with weights of which none is zero, of a size that keeps features near 1."""
    network.load_state_dict(drawn(network.state_dict(), seed))
    return network.eval()
