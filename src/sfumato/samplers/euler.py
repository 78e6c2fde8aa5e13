"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on the probability-flow ODE: one estimate a step, first order.

    In sigma/alpha, on straight flow lines and in DDIM's form it is the same step. Inside `churn` it is the
    stochastic sampler of Karras et al. 2022, arXiv:2206.00364, without the correction.
    """

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        return move(x, reverse.denoise(x, here).x0, here, there), state
