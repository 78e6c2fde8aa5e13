"""Levels that make the variational bound easy to estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, unit


@dataclass(frozen=True)
class Likelihood(LevelLaw):
    """Log-SNR uniform: p(t) ∝ g²/sigma² = -d log(SNR)/dt, with importance weights back to uniform times.

    With the weight `likelihood` what is left of weights on the squared error of the noise is one constant,
    log(SNR(t_min) / SNR(1)) / (2 (1 - t_min)): the expectation is that of uniform times, the variance that of
    the simple loss. Where the data vanish at t = 1 (flow), the last index of time is left out.

    Song et al. 2021, arXiv:2101.09258, section 5.1; Kingma et al. 2021, arXiv:2107.00630, section 5.1 (where
    a learned schedule is led to the same).

    Args:
        stratified: one draw in each of B parts of equal probability.
    """

    stratified: bool = False

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        start = torch.full((count,), process.t_min, dtype=torch.float64)
        return by_log_snr(process, unit(count, noise, self.stratified), start)


def by_log_snr(process: Process, u: Tensor, start: Tensor) -> Levels:
    """Times of uniform log-SNR between `start` and the far end, weighted to uniform times on [t_min, 1].

    Args:
        process: of the times.
        u: (B,) in (0, 1); 1 is the far end.
        start: (B,) times, each row's cleanest.
    """
    low, high = process.log_snr_range()[0], process(start).log_snr
    span = (high - low).clamp_min(0)
    t = torch.maximum(process.time(high - span * u), start)
    level, rates = process(t), process.rates(t)
    fall = rates.sigma / level.sigma - rates.alpha / level.alpha
    return Levels(t, span / (fall * (1 - process.t_min)))
