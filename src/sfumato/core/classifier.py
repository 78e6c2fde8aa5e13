"""Noisy classifiers: from (x, level) to how likely each class is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import TIME_INPUTS, Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.prediction import Data
from sfumato.core.process import Process

LogProbability = Callable[[Tensor, Level[Any], Condition], Tensor]
"""(x_t (B, C, ..), level, what the denoiser is told) → log p(y | x_t), (B,), differentiable in x_t.

One that has an attribute `least` is not asked where alpha / sigma is lower."""


class NoisyClassifier(NetworkDenoiser):
    """A network and the process it was trained on, as a classifier of pictures seen through any noise.

    It stands where a denoiser stands in a model, so that it is trained, saved and loaded as one, and refuses
    to denoise. The network is shown x_t / sqrt(alpha² + sigma²), which is x_t itself on variance-preserving
    paths, at the time of its own process with the level's log-SNR.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, section 4.

    Args:
        network: network(x (B, C, ..), time (B,), an empty condition) → logits (B, classes).
        process: what it was trained on.
        classifies: the input whose words are its classes, such as "label".
        time_input: how it is told the time, a name of TIME_INPUTS.
    """

    def __init__(
        self, network: nn.Module, process: Process, classifies: str, time_input: str = "index"
    ) -> None:
        super().__init__(network, process, Data(), time_input)
        self.classifies = classifies

    def forward(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        """No classifier says the data: always InvalidInput."""
        raise no_denoiser()

    def logits(self, x: Tensor, level: Level[Any]) -> Tensor:
        """Of x (B, C, ..) at a level, floats or tensors (B, 1, .., 1) → (B, classes)."""
        alpha, sigma = (torch.as_tensor(part, dtype=torch.float64).flatten() for part in level)
        seen = Level(alpha, sigma)
        t = self.process.time(seen.log_snr)
        time = TIME_INPUTS[self.time_input](self.process, t, self.process(t).log_snr)
        norm = seen.norm.to(x).view(-1, *[1] * (x.ndim - 1))
        return self.network(x / norm, time.to(x.device, torch.float32).expand(len(x)), Condition())

    def likelihood(self, classes: Tensor) -> ClassLikelihood:
        """log p(y | x_t) as guidance wants it; classes (B, classes) one-hot, rows of zeros for none."""
        return ClassLikelihood(self, classes)


@dataclass(frozen=True)
class ClassLikelihood:
    """log p(y | x_t) of given classes, a LogProbability; 0 where no class is given.

    Args:
        classifier: what is asked.
        classes: (B, classes) one-hot; tiled where the batch was.
    """

    classifier: NoisyClassifier
    classes: Tensor

    @property
    def denoiser(self) -> NoisyClassifier:
        """The classifier, which tells a guidance that wants a denoiser here that it is none."""
        return self.classifier

    @property
    def least(self) -> float:
        """The lowest alpha / sigma the classifier was trained on."""
        return math.exp(self.classifier.process.log_snr_range()[0])

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        """x (B, C, ..) at a level → (B,)."""
        return log_probability(self.classifier.logits(x, level), self.classes)


def log_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """log softmax(logits) at one-hot classes, tiled to the rows of the logits; (B,), float32 at least."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if classes.shape[1] != wide.shape[1]:
        raise InvalidInput(f"{classes.shape[1]} classes for a network of {wide.shape[1]}", where="classes")
    # Repeated and not viewed: what was made in inference mode cannot be kept for a gradient, its copies can.
    return (wide.log_softmax(1) * classes.to(wide).repeat(len(wide) // len(classes), 1)).sum(1)


def no_denoiser() -> InvalidInput:
    """The error of whoever samples from a classifier."""
    return InvalidInput(
        "a classifier makes no pictures",
        where="model",
        do='steer another model with it: guidance {"name": "classifier", "model": FOLDER}',
    )
