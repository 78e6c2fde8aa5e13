"""Sub-variance-preserving SDE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class SubVP(Process):
    """Sub-variance-preserving SDE: alpha as VP, sigma = 1 - alpha², below VP's sigma at every time.

    Song et al. 2021, arXiv:2011.13456, equations 12 and 33.

    Args:
        beta_min: β(0).
        beta_max: β(1).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def level(self, t: Tensor) -> Level[Tensor]:
        log_alpha = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return Level(log_alpha.exp(), -torch.expm1(2 * log_alpha))

    def invert(self, log_snr: Tensor) -> Tensor:
        # sigma/alpha = 1/alpha - alpha = 2 sinh(-log alpha); beyond e^300 asinh(x) is log(2x).
        power = torch.where(
            log_snr < -300, -2 * log_snr, 2 * torch.asinh((-log_snr).clamp_max(600).exp() / 2)
        )
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * power).sqrt()
        return 2 * power / (root + self.beta_min)
