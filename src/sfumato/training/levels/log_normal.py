"""Log-normal noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, ones, unit


@dataclass(frozen=True)
class LogNormal(LevelLaw):
    """ln(sigma/alpha) normal: most training where the loss can still be lowered.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, table 1 (P_mean = -1.2, P_std = 1.2). Drawn by the
    inverse distribution function and held to the range of the process.

    Args:
        mean: of ln(sigma/alpha).
        std: of ln(sigma/alpha).
        stratified: one draw in each of B parts of equal probability.
    """

    mean: float = -1.2
    std: float = 1.2
    stratified: bool = False

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        log_ratio = self.mean + self.std * torch.special.ndtri(unit(count, noise, self.stratified))
        return ones(process.time(-log_ratio).clamp(process.t_min, 1.0))
