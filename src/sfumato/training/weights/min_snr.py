"""Clipped signal-to-noise weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight, snr


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(SNR, gamma): nearly clean levels no longer drown the others.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", arXiv:2303.09556.

    Args:
        gamma: where SNR is clipped.
    """

    gamma: float = 5.0

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        return snr(level).clamp_max(self.gamma)
