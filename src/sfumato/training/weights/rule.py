"""What a loss weighting is."""

from __future__ import annotations

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.core.process import Process


class Weight:
    """Weighs noise levels against each other.

    All weights multiply the squared error of x0, whatever the network predicts: with SNR = alpha²/sigma²,
    |eps error|² = SNR |x0 error|² and, at unit variance, |v error|² = (SNR + 1) |x0 error|².
    """

    def __call__(self, level: Level[Tensor], prediction: Prediction) -> Tensor:
        """Weights (B,) at levels (B,); float64 in, float64 out."""
        raise NotImplementedError

    def at(self, process: Process, t: Tensor, prediction: Prediction) -> Tensor:
        """Weights (B,) at times t (B,) of a process: those of its levels, unless the rule needs rates."""
        return self(process(t), prediction)


def snr(level: Level[Tensor]) -> Tensor:
    """alpha²/sigma², (B,)."""
    return (level.alpha / level.sigma) ** 2
