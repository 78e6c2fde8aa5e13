"""Sigma space: the coordinates x/alpha and sigma/alpha in which Runge-Kutta samplers integrate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess


def denoise(reverse: ReverseProcess, y: Tensor, ratio: float) -> Tensor:
    """The estimate x0 at y = x/alpha and ratio = sigma/alpha."""
    return reverse.denoise(y, Level(1.0, ratio)).x0


def slope(reverse: ReverseProcess, y: Tensor, ratio: float) -> Tensor:
    """dy/d(sigma/alpha), which is the estimated noise (Karras et al. 2022, arXiv:2206.00364, equation 1)."""
    return (y - denoise(reverse, y, ratio)) / ratio


def straight_slope(reverse: ReverseProcess, y: Tensor, time: float) -> Tensor:
    """dy/ds of straight lines, eps - x0, at y = x/(alpha + sigma) and time s = sigma/(alpha + sigma)."""
    return (y - reverse.denoise(y, Level(1 - time, time)).x0) / time


@dataclass(frozen=True)
class Churn:
    """Fresh noise before each step, as if the walk had started a little higher.

    Karras et al. 2022, arXiv:2206.00364, algorithm 2.

    Args:
        amount: S_churn over the number of steps: share by which sigma/alpha grows, at most sqrt(2) - 1.
        low: S_min, churn only above this sigma/alpha.
        high: S_max, and up to this.
        noise_scale: S_noise, standard deviation of the fresh noise.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise_scale: float = 1.0

    def __call__(self, reverse: ReverseProcess, y: Tensor, ratio: float, t: float) -> tuple[Tensor, float]:
        """(y, sigma/alpha) after churning."""
        if self.amount <= 0 or not self.low <= ratio <= self.high:
            return y, ratio
        higher = ratio * (1 + min(self.amount, math.sqrt(2) - 1))
        added = math.sqrt(higher**2 - ratio**2) * self.noise_scale
        return y + added * reverse.randn_like(y, t, "churn"), higher
