"""Even steps in time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.process import Process
from sfumato.core.times import checked, even


@dataclass(frozen=True)
class Uniform:
    """Even steps in t: N + 1 times from 1 to 0.

    Args:
        clean: end in clean data; else at the process's smallest noisy time, as score-based samplers do
            (Song et al. 2021, arXiv:2011.13456, appendix C).
    """

    clean: bool = True

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        end = 0.0 if self.clean else process.t_min
        return checked(even(1.0, end, steps + 1), steps)
