"""EDM's weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight, snr


@dataclass(frozen=True)
class EDM(Weight):
    """SNR + 1/sigma_data²: an initial loss of 1 at every level under EDM's preconditioning.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, table 1: (ς² + sigma_data²) / (ς sigma_data)² with
    ς = sigma/alpha.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        return snr(level) + self.sigma_data**-2
