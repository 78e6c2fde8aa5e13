"""Uniform times."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, ones, unit


@dataclass(frozen=True)
class Uniform(LevelLaw):
    """Times uniform on [t_min, 1], or on the indices of a discrete model.

    Ho, Jain & Abbeel 2020, arXiv:2006.11239 (discrete); Song et al. 2021, arXiv:2011.13456 (continuous).

    Args:
        discrete: draw an index k of 0 .. steps - 1, t = (k + 1) / steps, as DDPM does.
        stratified: one time in each of B even parts of the range (Kingma et al. 2021, arXiv:2107.00630,
            appendix I.1), which makes the loss of a batch less noisy. The rows of one batch then depend on
            its size.
    """

    discrete: bool = False
    stratified: bool = False

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        u = unit(count, noise, self.stratified)
        if self.discrete:
            return ones(((u * process.steps).floor().clamp_max(process.steps - 1) + 1) / process.steps)
        return ones(process.t_min + (1 - process.t_min) * u)
