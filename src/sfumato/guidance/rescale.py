"""Classifier-free guidance with its contrast restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.level import Level
from sfumato.guidance.classifier_free import estimates


@dataclass(frozen=True)
class Rescale:
    """Classifier-free guidance whose noise keeps the standard deviation of the conditional one.

        eps = φ · eps_guided std(eps_conditional) / std(eps_guided) + (1 - φ) · eps_guided

    Strong guidance over-exposes; this takes it back. The statistics are each sample's own, over all its
    values.

    Lin, Liu, Li & Yang 2024, arXiv:2305.08891, equations 14 to 16 (φ .7 there).

    Args:
        scale: guidance scale.
        phi: how much of the rescaled estimate to use, 0 to 1.
    """

    scale: float = 7.5
    phi: float = 0.7

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser."""

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            if self.scale == 1:
                return denoiser(x, level, condition)
            without, given = estimates(denoiser, x, level, condition, null)
            axes = tuple(range(1, x.ndim))
            conditional = (x - level.alpha * given.x0) / level.sigma
            eps = (x - level.alpha * torch.lerp(without.x0, given.x0, self.scale)) / level.sigma
            ratio = conditional.std(axes, keepdim=True) / eps.std(axes, keepdim=True)
            if isinstance(level.alpha, float) and level.alpha == 0:
                return Denoised(torch.lerp(without.x0, given.x0, self.scale), given.variance)
            eps = eps * (self.phi * ratio + 1 - self.phi)
            return Denoised((x - level.sigma * eps) / level.alpha, given.variance)

        return guided
