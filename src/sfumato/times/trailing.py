"""Trailing spacing of discrete models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.times import from_indices


@dataclass(frozen=True)
class Trailing:
    """Indices counted back from the noisiest: 999, 979, .., 19 for 50 of 1000, then clean data.

    Lin, Liu, Li & Yang 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    arXiv:2305.08891, table 2. Needed with zero terminal SNR; right whether or not N divides T.
    """

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        if not 1 <= steps <= process.steps:
            raise InvalidInput(f"{steps} steps of a process that has {process.steps}", where="steps")
        exact = process.steps - torch.arange(steps, dtype=torch.float64, device="cpu") * process.steps / steps
        return from_indices(exact.round() - 1, process, steps)
