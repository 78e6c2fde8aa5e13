"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.level import Level


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance: move the estimate away from what the model says of no condition.

        x0 = x0(null) + scale · (x0(condition) - x0(null))

    Scale 1 is the plain conditional model, 0 the unconditional one, each in a single call; else both
    estimates come from one batched call, null rows first (branch 0), conditional rows second (branch 1). A
    negative prompt is a user-given null. The reverse variance of learned-range models stays the conditional
    one.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv:2207.12598 (their w is scale - 1).

    Args:
        scale: how strongly.
        channels: guide only the first so many channels of the noise (DiT as released guides 3 of 4).
    """

    scale: float = 7.5
    channels: int | None = None

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser."""

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            if self.scale == 1:
                return denoiser(x, level, condition)
            if self.scale == 0 and self.channels is None:
                return denoiser(x, level, null.tile(len(x)))
            without, given = estimates(denoiser, x, level, condition, null)
            x0 = torch.lerp(without.x0, given.x0, self.scale)
            if self.channels is not None:
                x0 = torch.cat((x0[:, : self.channels], given.x0[:, self.channels :]), dim=1)
            return Denoised(x0, given.variance)

        return guided


def estimates(
    denoiser: Denoiser, x: Tensor, level: Level[Any], condition: Condition, null: Condition
) -> tuple[Denoised, Denoised]:
    """(x0(null), x0(condition)) from one batched call."""
    if isinstance(level.alpha, Tensor) and level.alpha.ndim:
        level = Level(level.alpha.repeat(2, *[1] * (x.ndim - 1)), level.sigma.repeat(2, *[1] * (x.ndim - 1)))
    x0, variance = denoiser(torch.cat((x, x)), level, Condition.stack((null.tile(len(x)), condition)))
    (without, given), variances = x0.chunk(2), (None, None) if variance is None else variance.chunk(2)
    return Denoised(without, variances[0]), Denoised(given, variances[1])
