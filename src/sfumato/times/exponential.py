"""Exponential noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.times import even, from_ratios, ratio_range


@dataclass(frozen=True)
class Exponential:
    """Noise levels in geometric progression, then clean data; with ρ a polynomial in the exponent.

        log(sigma/alpha) = log(low) + (1 - i/(N-1))^ρ · log(high / low)

    Args:
        rho: 1 is a geometric progression; above 1 spends more steps near the data.
        sigma_min: lowest sigma/alpha; None means the process's own.
        sigma_max: highest likewise.
    """

    rho: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        low, high = ratio_range(process, self.sigma_min, self.sigma_max)
        part = even(1, 0, steps) ** self.rho
        return from_ratios((math.log(low) + part * math.log(high / low)).exp(), process, steps)
