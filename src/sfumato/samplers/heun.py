"""Heun's method: the EDM sampler."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.ratio import slope, straight_slope
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method: an Euler step, then again with the mean of both slopes; second order.

    Two estimates a step, one in the last, to clean data. Slopes are taken in sigma/alpha, which is infinite
    in pure noise, so that a first step from there is Euler's; or `straight`, in the time of straight flow
    lines, sigma/(alpha + sigma), which is finite everywhere. Inside `churn` it is the stochastic sampler of
    EDM.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, algorithms 1 and 2; straight, as flow models are
    commonly walked (Liu, Gong & Liu 2022, arXiv:2209.03003).

    Args:
        straight: integrate along straight flow lines rather than in sigma/alpha.
    """

    straight: bool = False

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if self.straight:
            return self._straight(reverse, x, here, there), state
        if here.alpha == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        y, ratio = x / here.alpha, here.ratio
        first = slope(reverse, y, ratio)
        step = there.ratio - ratio
        y_s = y + step * first
        if there.sigma > 0:
            y_s = y + step * (first + slope(reverse, y_s, there.ratio)) / 2
        return there.alpha * y_s, state

    def _straight(
        self, reverse: ReverseProcess, x: Tensor, here: Level[float], there: Level[float]
    ) -> Tensor:
        start, end = (level.sigma / (level.alpha + level.sigma) for level in (here, there))
        y = x / (here.alpha + here.sigma)
        first = straight_slope(reverse, y, start)
        y_s = y + (end - start) * first
        if there.sigma > 0:
            y_s = y + (end - start) * (first + straight_slope(reverse, y_s, end)) / 2
        return (there.alpha + there.sigma) * y_s
