"""Logit-normal times."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, ones, unit


@dataclass(frozen=True)
class LogitNormal(LevelLaw):
    """t = sigmoid(n) with n normal: the middle of the way more often than its ends.

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    arXiv:2403.03206, equation 19. Meant for flow, where t is sigma itself.

    Args:
        mean: of the logit; positive trains noisier levels more.
        std: of the logit.
        stratified: one draw in each of B parts of equal probability.
    """

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        logit = self.mean + self.std * torch.special.ndtri(unit(count, noise, self.stratified))
        return ones(torch.sigmoid(logit).clamp(process.t_min, 1.0))
