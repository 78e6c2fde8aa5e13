"""Guidance in a limited interval of noise levels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.guidance import Guidance
from sfumato.core.level import Level
from sfumato.guidance.classifier_free import ClassifierFree


@dataclass(frozen=True)
class Interval:
    """Another guidance, applied only where low < sigma/alpha <= high; the plain conditional model elsewhere.

    Guidance hurts at high noise and does nothing at low; outside the interval it also costs nothing.

    Kynkäänniemi, Aittala, Karras, Laine, Aila & Lehtinen 2024, "Applying Guidance in a Limited Interval",
    arXiv:2404.07724.

    Args:
        low: below and at this sigma/alpha the model is left alone.
        high: above this too.
        guidance: what to apply in between.
    """

    low: float = 0.0
    high: float = math.inf
    guidance: Guidance = field(default_factory=ClassifierFree)

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser; levels are floats, as while sampling."""
        inner = self.guidance(denoiser, null)

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            inside = self.low < level.ratio <= self.high
            return (inner if inside else denoiser)(x, level, condition)

        return guided
