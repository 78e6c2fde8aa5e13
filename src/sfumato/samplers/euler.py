"""Euler's method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sfumato.core.ratio import Churn, denoise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method on the probability-flow ODE: one estimate a step, first order.

    In sigma/alpha, on straight flow lines and in DDIM's form it is the same step. With churn it is the
    stochastic sampler of Karras et al. 2022, arXiv:2206.00364, without the correction.

    Args:
        churn: fresh noise before each step; none by default.
    """

    churn: Churn = field(default_factory=Churn)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if self.churn.amount <= 0 or here.alpha == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        y, ratio = self.churn(reverse, x / here.alpha, here.ratio, t)
        x0 = denoise(reverse, y, ratio)
        return there.alpha * (y + (there.ratio - ratio) * (y - x0) / ratio), state
