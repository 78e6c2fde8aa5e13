"""Variance-exploding SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class VE(Process):
    """Variance-exploding SDE: alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    The noise ladder of NCSN in continuous time (Song et al. 2021, arXiv:2011.13456, equations 9 and 31). At t
    = 0 itself the level is clean data, as for every process here; just above it sigma is sigma_min.

    Args:
        sigma_min: noise at the clean end (.01 for data in [0, 1]).
        sigma_max: noise at the far end: about the largest distance between two pictures of the data.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    t_min = 1e-5

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def level(self, t: Tensor) -> Level[Tensor]:
        sigma = self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))
        return Level(torch.ones_like(t), sigma)

    def invert(self, log_snr: Tensor) -> Tensor:
        t = (-log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp_min(self.t_min)
