"""The noise levels of Karras et al."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.times import even, from_ratios, ratio_range


@dataclass(frozen=True)
class Karras:
    """Noise levels even in (sigma/alpha)^(1/ρ): short steps near the data, where they matter.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, equation 5.

    Args:
        rho: 7 is theirs; larger spends more steps near the data.
        sigma_min: lowest sigma/alpha; None means the process's own.
        sigma_max: highest likewise.
        clean: end with a step to clean data; else the last of N + 1 levels is the lowest.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    clean: bool = True

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        low, high = ratio_range(process, self.sigma_min, self.sigma_max)
        part = even(0, 1, steps + (not self.clean))
        ratios = (
            high ** (1 / self.rho) + part * (low ** (1 / self.rho) - high ** (1 / self.rho))
        ) ** self.rho
        return from_ratios(ratios, process, steps, self.clean)
