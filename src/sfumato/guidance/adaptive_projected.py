"""Adaptive projected guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.guidance.classifier_free import estimates


@dataclass(frozen=True)
class AdaptiveProjected:
    """Classifier-free guidance without the part that only makes the conditional estimate stronger.

        d  = x0(condition) - x0(null) + momentum · (d of the call before)
        d  = d · min(1, norm / |d|)
        x0 = x0(condition) + (scale - 1) (d⊥ + parallel · d∥),   d∥ the part of d along x0(condition)

    What lies along the estimate raises contrast and saturation, what lies across it changes what is shown.
    Negative momentum pushes on only where guidance changes its mind. Each sample is projected by itself, over
    all its values; the memory is that of one walk. With `parallel` 1, `norm` infinite and no momentum it is
    classifier-free guidance.

    Sadat, Hilliges & Weber 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in
    Diffusion Models", arXiv:2410.02416, equations 5 to 8 and algorithm 1 (norm 2.5 for DiT, 15 for SDXL,
    momentum -.5 there).

    Args:
        scale: guidance scale.
        parallel: how much of the part along the estimate is kept, their eta.
        norm: the most that d may be, as the length of a sample; their r.
        momentum: how much of the last call's d is added, -1 < momentum < 1; their beta.

    Raises:
        InvalidInput: a momentum that would grow without end, or a norm that is not positive.
    """

    scale: float = 7.5
    parallel: float = 0.0
    norm: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        if not -1 < self.momentum < 1:
            raise InvalidInput(
                f"{self.momentum} is not between -1 and 1", where="adaptive_projected.momentum"
            )
        if not self.norm > 0:
            raise InvalidInput(f"{self.norm} is no length", where="adaptive_projected.norm")

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser, which remembers from call to call: one is made for each walk."""
        last: Tensor | None = None

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            nonlocal last
            if self.scale == 1:
                return denoiser(x, level, condition)
            without, given = estimates(denoiser, x, level, condition, null)
            difference = given.x0 - without.x0
            if self.momentum and last is not None:
                difference = difference + self.momentum * last
            last = difference
            d, along = difference.flatten(1), given.x0.flatten(1)
            d = d * (self.norm / d.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
            along = torch.nn.functional.normalize(along, dim=1)
            part = (d * along).sum(1, keepdim=True) * along
            moved = (d - (1 - self.parallel) * part).view_as(x)
            return Denoised(given.x0 + (self.scale - 1) * moved, given.variance)

        return guided
