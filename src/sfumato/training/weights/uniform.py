"""Uniform weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.training.weights.rule import Weight


@dataclass(frozen=True)
class Uniform(Weight):
    """Every level alike in what the network itself outputs: the plain squared error of its target.

    As x0 = skip · x_t + out · output, that is 1 / out²: SNR for noise prediction (the simple loss of DDPM),
    SNR + 1 for velocity, 1 for data, (1 + sigma/alpha)² (alpha/sigma)² for flow, EDM's own weight for edm.
    """

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        _, out = prediction.coefficients(level)
        return out**-2
