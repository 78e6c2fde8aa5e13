"""Predictions: what a network outputs, each a linear map to the posterior mean of the data.

x0 = skip · x_t + out · output, with x_t = alpha · x0 + sigma · eps at any level, variance-preserving or not.
Salimans & Ho 2022, arXiv:2202.00512 (velocity); Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364 (edm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.level import Level, Scalar


@dataclass(frozen=True)
class Prediction:
    """What a network outputs. `needs_signal` says that at alpha = 0 the output tells nothing of the data."""

    needs_signal = False

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        """(skip, out) of x0 = skip · x_t + out · output."""
        raise NotImplementedError

    def scale(self, level: Level[Scalar]) -> Scalar | float:
        """What x_t is multiplied with before the network sees it."""
        return 1.0

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        """What the network should output, given the data and the noise; shapes as x0."""
        raise NotImplementedError


@dataclass(frozen=True)
class Noise(Prediction):
    """The noise eps."""

    needs_signal = True

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        return 1 / level.alpha, -level.sigma / level.alpha

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        return eps


@dataclass(frozen=True)
class Data(Prediction):
    """The data x0."""

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        return 0 * level.alpha, 1 + 0 * level.alpha

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        return x0


@dataclass(frozen=True)
class Velocity(Prediction):
    """v = alpha · eps - sigma · x0; at unit variance the derivative along the circle from data to noise."""

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        power = level.alpha**2 + level.sigma**2
        return level.alpha / power, -level.sigma / power

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        return level.alpha * eps - level.sigma * x0


@dataclass(frozen=True)
class Flow(Prediction):
    """u = eps - x0, the velocity of straight lines from data to noise (rectified flow, flow matching)."""

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        total = level.alpha + level.sigma
        return 1 / total, -level.sigma / total

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        return eps - x0


@dataclass(frozen=True)
class Score(Prediction):
    """The score, the gradient of log p(x_t): -eps / sigma."""

    needs_signal = True

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        return 1 / level.alpha, level.sigma**2 / level.alpha

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        return -eps / level.sigma


@dataclass(frozen=True)
class EDM(Prediction):
    """F of Karras et al. 2022: D = c_skip · x + c_out · F(c_in · x), of unit variance at every level.

    Their table 1 is in x/alpha and sigma/alpha; written in alpha and sigma it stays finite at alpha = 0.

    Args:
        sigma_data: standard deviation of the data (.5 for pictures in [-1, 1]).
    """

    sigma_data: float = 0.5

    def coefficients(self, level: Level[Scalar]) -> tuple[Scalar, Scalar]:
        power = (level.alpha * self.sigma_data) ** 2 + level.sigma**2
        return level.alpha * self.sigma_data**2 / power, level.sigma * self.sigma_data / _sqrt(power)

    def scale(self, level: Level[Scalar]) -> Scalar | float:
        return 1 / _sqrt((level.alpha * self.sigma_data) ** 2 + level.sigma**2)

    def target(self, x0: Tensor, eps: Tensor, level: Level[Tensor]) -> Tensor:
        # (x0 - c_skip x_t) / c_out, arranged so that small sigma does not cancel.
        norm = _sqrt((level.alpha * self.sigma_data) ** 2 + level.sigma**2)
        return (level.sigma * x0 / self.sigma_data - level.alpha * self.sigma_data * eps) / norm


def _sqrt(value: Scalar) -> Scalar:
    return torch.sqrt(value) if isinstance(value, Tensor) else math.sqrt(value)


PREDICTIONS: dict[str, type[Prediction]] = {
    "noise": Noise,
    "data": Data,
    "velocity": Velocity,
    "flow": Flow,
    "score": Score,
    "edm": EDM,
}
