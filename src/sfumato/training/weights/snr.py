"""Signal-to-noise weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight, snr


@dataclass(frozen=True)
class SNR(Weight):
    """SNR: the squared error of the noise, whatever the network outputs.

    The simple loss of Ho, Jain & Abbeel 2020, arXiv:2006.11239, equation 14.
    """

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        return snr(level)
