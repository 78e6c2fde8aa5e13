"""Likelihood weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.bound import likelihood_weight
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.core.process import Process
from sfumato.training.weights.rule import Weight


@dataclass(frozen=True)
class Likelihood(Weight):
    """-½ dSNR/dt: the loss is the variational bound on the likelihood, in nats a dimension.

    Exactly so for uniform times: their mean loss times (1 - t_min) is all of the bound that can be trained.
    It is the weighting g² of the score's squared error (Song, Durkan, Murray & Ermon 2021, "Maximum
    Likelihood Training of Score-Based Diffusion Models", arXiv:2101.09258, equation 7; Kingma et al. 2021,
    arXiv:2107.00630, equation 17). Nearly clean levels weigh beyond all measure, so that it is used with the
    levels `likelihood`, which leave the plain error of the noise, or with `soft_truncation`.
    """

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        raise InvalidInput("it takes a time and a process, not a level alone", where="weight likelihood")

    def at(self, process: Process, t: Tensor, prediction: Prediction) -> Tensor:
        return likelihood_weight(process, t)
