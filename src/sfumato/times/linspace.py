"""Evenly spread indices of discrete models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.times import even, from_indices


@dataclass(frozen=True)
class Linspace:
    """Indices spread evenly from the noisiest to index 0, both visited, then clean data.

    ADM's respacing of a walk to N steps (Dhariwal & Nichol 2021, arXiv:2105.05233: 0, 4, 8, .., 995, 999 for
    250).

    Args:
        endpoint: visit index 0; without it the indices are the first N of N + 1 (999, 949, .. for 20), the
            grid of DPM-Solver.
        rounded: visit whole indices only; else in between, where the process interpolates (Euler samplers).
    """

    endpoint: bool = True
    rounded: bool = True

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        if not 1 <= steps <= process.steps:
            raise InvalidInput(f"{steps} steps of a process that has {process.steps}", where="steps")
        count = steps if self.endpoint else steps + 1
        indices = even(process.steps - 1, 0, count)[:steps]
        return from_indices(indices.round() if self.rounded else indices, process, steps)
