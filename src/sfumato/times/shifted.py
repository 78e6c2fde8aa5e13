"""Shifted times: more steps where the noise is strong."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.times import Times, checked


def _uniform() -> Times:
    from sfumato.times.uniform import Uniform

    return Uniform()


@dataclass(frozen=True)
class Shifted:
    """Another grid with its levels shifted towards noise: s' = k s / (1 + (k - 1) s), s = sigma / (alpha +
    sigma).

    On a flow, s is t and this is the shift of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206,
    equation 23: sigma/alpha grows k-fold); elsewhere s is scaled so that t = 1 stays where it is. Larger
    pictures want a larger k, about the square root of how many times more pixels they have.

    Args:
        shift: k; 3 for Stable Diffusion 3 at 1024 pixels.
        times: the grid to shift.
    """

    shift: float = 3.0
    times: Times = field(default_factory=_uniform)

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise InvalidInput(f"{self.shift} is not above 0", where="shifted.shift")

    def __call__(self, process: Process, steps: int) -> Tensor:
        """Decreasing times (steps + 1,), float64."""
        times = self.times(process, steps)
        level, last = process(times), process(1.0)
        top = last.sigma / (last.alpha + last.sigma)
        part = level.sigma / (level.alpha + level.sigma) / top
        part = self.shift * part / (1 + (self.shift - 1) * part) * top
        shifted = process.time(torch.log1p(-part) - part.log())
        return checked(torch.where(times == 1, 1.0, torch.where(times == 0, 0.0, shifted)), steps)
