"""Cosine process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class Cosine(Process):
    """Cosine process: alpha = cos(πt/2), sigma = sin(πt/2), an even walk along the circle from data to noise.

    Salimans & Ho 2022, arXiv:2202.00512, section 2 (velocity prediction's natural home). The discrete cosine
    schedule of Nichol & Dhariwal 2021 is `betas` with schedule "cosine".
    """

    def level(self, t: Tensor) -> Level[Tensor]:
        # sin of the complement, so that alpha(1) is exactly 0.
        return Level(torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t))

    def invert(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2((-log_snr / 2).exp(), (log_snr / 2).exp())
