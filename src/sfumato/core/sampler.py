"""Samplers: frozen values that step a reverse process from one time to the next, and the one loop that drives
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess

State = Any


class Sampler:
    """Integrates a reverse process. A sampler writes `step`; one with memory also writes `init`."""

    def init(self, x: Tensor) -> State:
        """The memory before the first step; returned by each step, never stored."""
        return None

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        """From x at time t to x at time s < t."""
        raise NotImplementedError


@dataclass(frozen=True)
class StepEvent:
    """One step done: its number of `steps`, the times it went from and to, and where it arrived."""

    index: int
    steps: int
    t: float
    s: float
    x: Tensor


Observe = Callable[[StepEvent], None]


def sample(
    sampler: Sampler, reverse: ReverseProcess, x: Tensor, times: Tensor, observe: Observe | None = None
) -> Tensor:
    """Walk x (B, ..) along decreasing times (N + 1,) from times[0] to times[-1].

    `observe` is called after every step; raising from it stops the walk.
    """
    walk = times.tolist()
    if len(walk) < 2 or any(not s < t for t, s in pairwise(walk)):
        raise InvalidInput("times must decrease strictly and hold at least two values", where="times")
    state = sampler.init(x)
    for index, (t, s) in enumerate(pairwise(walk)):
        x, state = sampler.step(reverse, x, t, s, state)
        if observe is not None:
            observe(StepEvent(index, len(walk) - 1, t, s, x))
    return x


def move(x: Tensor, x0: Tensor, t: Level[float], s: Level[float], std: float = 0.0) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s² - std²) eps, with eps read off x and x0: every first-order step.

    Noise of standard deviation `std` is left for the caller to add. Divides by sigma alone, so it may start
    where alpha is 0. (Song, Meng & Ermon 2021, arXiv:2010.02502, equation 12.)
    """
    keep = math.sqrt(max(s.sigma**2 - std**2, 0.0)) / t.sigma
    return torch.add(x * keep, x0, alpha=s.alpha - t.alpha * keep)


def reverse_std(t: Level[float], s: Level[float]) -> float:
    """Standard deviation of q(x_s | x_t, x0), the smaller of DDPM's two reverse variances (beta tilde)."""
    ratio = t.alpha / s.alpha
    return s.sigma / t.sigma * math.sqrt(max(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0))
