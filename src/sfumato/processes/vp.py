"""Variance-preserving SDE."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class VP(Process):
    """Variance-preserving SDE: dx = -½ β(t) x dt + sqrt(β(t)) dW with β(t) = β0 + t (β1 - β0).

        log alpha(t) = -¼ t² (β1 - β0) - ½ t β0,   sigma = sqrt(1 - alpha²)

    Song et al. 2021, arXiv:2011.13456, equations 11 and 32; the limit of DDPM's linear betas.

    Args:
        beta_min: β0.
        beta_max: β1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def level(self, t: Tensor) -> Level[Tensor]:
        log_alpha = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return Level(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())

    def invert(self, log_snr: Tensor) -> Tensor:
        # -2 log alpha = log(1 + (sigma/alpha)²); then a quadratic in t, in the form that does not cancel.
        power = torch.nn.functional.softplus(-2 * log_snr)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * power).sqrt()
        return 2 * power / (root + self.beta_min)
