"""Classifier guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.classifier import LogProbability
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level

_LEAST = 1e-3
"""The lowest alpha / sigma a classifier is asked at."""


@dataclass(frozen=True)
class Classifier:
    """Classifier guidance: move the estimate to where a classifier sees more of the class in x_t.

        x0 = x0 + scale · (sigma² / alpha) · ∇_x log p(y | x_t)

    which adds scale · ∇ log p(y | x_t) to the score, and -scale · sigma · ∇ log p(y | x_t) to the noise (the
    paper's form for DDIM), whatever the sampler, the path and the network's output. With an exact classifier
    and scale 1 an unconditional model becomes the conditional one. Where alpha tends to 0 the gradient does
    too, and what is added tends to scale · (E[x0 | y] - E[x0]): below the lowest alpha/sigma that the
    classifier was trained on, and below 1/1000, it is taken there, with x at the scale it has there.

    The paper's ancestral sampler adds Σ · scale · ∇ log p to the mean of a step instead. Ours adds
    (alpha_s / alpha_t) β · scale · ∇ log p, which is what a shifted estimate does to that mean: the same as
    the paper's for the larger variance, Σ = β, but for the factor alpha_s / alpha_t of one short step; with
    the smaller or a learned variance ours is the stronger, and least so where steps are short.

    Scales as released: conditional models 1.0 (64 and 256 pixels), .5 (128; 1.0 with 25 steps of DDIM) and
    4.0 (512); unconditional 256 pixels 10.0.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, algorithms 1
    and 2; Song et al. 2021, arXiv:2011.13456, equation 14.

    Args:
        scale: how strongly; 0 leaves the model alone.
        model: the classifier: to `sfumato.generate` the folder of a trained one, or one loaded, which is told
            the class by the input it classifies, whether the denoiser heeds that input or not; else a
            function (x (B, C, ..), level, condition) → log p(y | x_t) (B,), differentiable in x.

    Raises:
        InvalidInput: there is no classifier, when guidance is to be applied.
    """

    scale: float = 1.0
    model: str | Any | None = None

    def __post_init__(self) -> None:
        known = self.model is None or isinstance(self.model, str) or callable(self.model)
        if not known and not hasattr(self.model, "denoiser"):
            raise InvalidInput(
                f"{type(self.model).__name__} is no path, model or function", where="classifier.model"
            )

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser; levels are floats, as while sampling."""
        if self.scale == 0:
            return denoiser
        model = self.model
        if not callable(model):
            raise InvalidInput(
                "no classifier is given" if model is None else "this is no classifier, ready to be asked",
                where="classifier.model",
                do="give the folder of a trained one to sfumato.generate, or a function",
            )
        least = max(_LEAST, getattr(model, "least", 0.0))

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            x0, variance = denoiser(x, level, condition)
            if level.alpha < least * level.sigma:
                at = Level(least, 1.0)
                slope = gradient(model, x * (at.norm / level.norm), at, condition)
            else:
                at = level
                slope = gradient(model, x, at, condition)
            return Denoised(torch.add(x0, slope, alpha=self.scale * at.sigma**2 / at.alpha), variance)

        return guided


def gradient(model: LogProbability, x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
    """∇_x of a log-probability, row by row, also where gradients are switched off."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot be differentiated, their copies can.
            at, told = x.clone().requires_grad_(True), condition.map(torch.clone)
            return torch.autograd.grad(model(at, level, told).sum(), at)[0]
    # Elsewhere the answer may itself be differentiated, by autograd or by a transform of torch.func.
    return torch.func.grad(lambda at: model(at, level, condition).sum())(x)
