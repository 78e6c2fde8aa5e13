"""Perception-prioritised weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight, snr


@dataclass(frozen=True)
class P2(Weight):
    """SNR / (k + SNR)^gamma: less for the nearly clean levels, where only imperceptible detail is left.

    Choi et al. 2022, "Perception Prioritized Training of Diffusion Models", arXiv:2204.00227, equation 9.

    Args:
        k: where the change sets in.
        gamma: how strong; 0 is the plain noise error, .5 mild, 1 usual.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        ratio = snr(level)
        return ratio / (self.k + ratio) ** self.gamma
