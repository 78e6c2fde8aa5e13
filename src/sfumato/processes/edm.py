"""EDM's process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class EDM(Process):
    """Noise added at an even rate: alpha = 1, sigma = t · sigma_max.

    Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv:2206.00364, section 3; its time is sigma itself.

    Args:
        sigma_min: the smallest noise a network is asked about.
        sigma_max: the noise walks start from.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min / self.sigma_max

    @property
    def prior_std(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def level(self, t: Tensor) -> Level[Tensor]:
        return Level(torch.ones_like(t), t * self.sigma_max)

    def invert(self, log_snr: Tensor) -> Tensor:
        return (-log_snr).exp() / self.sigma_max
