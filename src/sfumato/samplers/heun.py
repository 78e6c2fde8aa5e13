"""Heun's method: the EDM sampler."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sfumato.core.ratio import Churn, slope
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method in sigma/alpha: an Euler step, then again with the mean of both slopes; second order.

    Two estimates a step, one in the last (to clean data) and in a first step from pure noise, where
    sigma/alpha is infinite. With churn it is the stochastic sampler of EDM.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, algorithms 1 and 2.

    Args:
        churn: fresh noise before each step; none by default.
    """

    churn: Churn = field(default_factory=Churn)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if here.alpha == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        y, ratio = self.churn(reverse, x / here.alpha, here.ratio, t)
        first = slope(reverse, y, ratio)
        step = there.ratio - ratio
        y_s = y + step * first
        if there.sigma > 0:
            y_s = y + step * (first + slope(reverse, y_s, there.ratio)) / 2
        return there.alpha * y_s, state
