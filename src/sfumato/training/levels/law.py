"""What a choice of training noise levels is: a law of times, with importance weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.noise import Noise
from sfumato.core.process import Process


class Levels(NamedTuple):
    """Noise levels of a batch.

    Args:
        t: times (B,), float64 on the CPU; the level is process(t).
        weight: importance weights (B,), float64: target density over the density drawn from. The loss is
            multiplied by them, so that its expectation is that of the target law.
    """

    t: Tensor
    weight: Tensor


class LevelLaw:
    """Chooses the noise levels a batch is trained on. A law with memory writes the last three methods too."""

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        """Levels of `count` rows, each a function of its row's noise alone."""
        raise NotImplementedError

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        """Losses (B,) met at times (B,), after an optimizer step; what a learning law learns from."""

    def state_dict(self) -> dict[str, Tensor]:
        """The memory, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of state_dict."""


def unit(count: int, noise: Noise, stratified: bool) -> Tensor:
    """Numbers in (0, 1), (B,) float64: independent, or one in each of B even strata.

    Stratified, row i is moved to stratum (i + shift) mod B, with shift and the place inside drawn by the
    rows' own seeds; every row is still uniform by itself, and a mean over the batch varies less.
    """
    u = noise.uniform((count, 1), "level")[:, 0]
    if not stratified:
        return u
    # The first row's draw turns all strata alike, so that no row is bound to one noise level.
    shift = int(noise[:1].uniform((1, 1), "level shift").item() * count)
    order = (torch.arange(count, device=u.device) + shift) % count
    return (order + u) / count


def ones(t: Tensor) -> Levels:
    """Levels drawn from the target law itself."""
    return Levels(t, torch.ones_like(t))
