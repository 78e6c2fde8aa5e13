"""DPM-Solver-2 in sigma space."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.core.ratio import slope
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class DPM2(Sampler):
    """Midpoint method in sigma/alpha, the midpoint taken in the logarithm; second order, two estimates a
    step.

    The second-order solver of Karras et al. 2022, arXiv:2206.00364 (algorithm 3), with DPM-Solver-2's
    midpoint (Lu et al. 2022, arXiv:2206.00927), known as "DPM2". One estimate in the last step, to clean
    data, and in a first step from pure noise.
    """

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if here.alpha == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        y, ratio = x / here.alpha, here.ratio
        change = slope(reverse, y, ratio)
        if there.sigma > 0:
            middle = math.sqrt(ratio * there.ratio)
            change = slope(reverse, y + (middle - ratio) * change, middle)
        return there.alpha * (y + (there.ratio - ratio) * change), state
