"""Times: grids of decreasing times, and the checks all of them share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process


class Times(Protocol):
    """A choice of times: (process, steps) → decreasing times (steps + 1,), float64 on the CPU."""

    def __call__(self, process: Process, steps: int) -> Tensor: ...


def checked(times: Tensor, steps: int) -> Tensor:
    """The grid itself, if it has as many steps as asked and they decrease."""
    if steps < 1 or len(times) != steps + 1:
        raise InvalidInput(f"no grid of {steps} steps", where="steps", do="give a whole number of at least 1")
    if not bool((times[1:] < times[:-1]).all()):
        raise InvalidInput(
            f"{steps} steps are more than this grid can tell apart", where="steps", do="give fewer"
        )
    return times


def even(start: float, end: float, count: int) -> Tensor:
    """`count` values evenly from start to end, both visited, float64."""
    if count < 1:
        raise InvalidInput("no grid of so few steps", where="steps", do="give a whole number of at least 1")
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")


def from_indices(indices: Tensor, process: Process, steps: int, clean: bool = True) -> Tensor:
    """Times of decreasing indices (N,), ending in clean data, or (N + 1,), ending where they end."""
    times = (indices.double() + 1) / process.steps
    if clean:
        times = torch.cat((times, torch.zeros(1, dtype=torch.float64, device="cpu")))
    return checked(times, steps)


def from_ratios(ratios: Tensor, process: Process, steps: int, clean: bool = True) -> Tensor:
    """Times of decreasing sigma/alpha, (N,) to end in clean data, else (N + 1,).

    A grid that starts at the process's own highest level starts at t = 1 exactly, also where alpha is 0
    there.
    """
    times = process.time(-ratios.log())
    if math.isclose(float(ratios[0]), math.exp(-process.log_snr_range()[0]), rel_tol=1e-9):
        times[0] = 1.0
    if clean:
        times = torch.cat((times, torch.zeros(1, dtype=torch.float64, device="cpu")))
    return checked(times, steps)


def ratio_range(process: Process, low: float | None, high: float | None) -> tuple[float, float]:
    """(lowest, highest) sigma/alpha of a grid: as given, else the process's own."""
    farthest, nearest = process.log_snr_range()
    low, high = low or math.exp(-nearest), high or math.exp(-farthest)
    if not 0 < low < high:
        raise InvalidInput(f"noise from {high} to {low} does not decrease", where="sigma_min, sigma_max")
    return low, high
