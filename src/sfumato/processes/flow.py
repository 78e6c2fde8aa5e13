"""Flow matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


@dataclass(frozen=True)
class Flow(Process):
    """Straight lines from data to noise: x_t = (1 - t) x0 + t eps (rectified flow, flow matching).

    Liu, Gong & Liu 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.
    """

    def level(self, t: Tensor) -> Level[Tensor]:
        return Level(1 - t, t)

    def invert(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr)
