"""Thresholding of the estimated data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.level import Level


@dataclass(frozen=True)
class Threshold:
    """Keep the estimated data inside the range of pictures.

    Static (percentile None): clamp x0 to [-bound, bound], as DDPM does. Dynamic: with q the percentile of
    |x0| of each sample, at least `bound` and at most `most`, clamp to [-q, q] and scale by bound/q, which
    keeps strong guidance from saturating. For pixel models only: latents have no such range.

    Ho et al. 2020, arXiv:2006.11239; Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.3.

    Args:
        percentile: None for static, .995 in Imagen.
        bound: the range of the data.
        most: largest q.
    """

    percentile: float | None = None
    bound: float = 1.0
    most: float = 100.0

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The denoiser with its estimate thresholded."""

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            x0, variance = denoiser(x, level, condition)
            if self.percentile is None:
                return Denoised(x0.clamp(-self.bound, self.bound), variance)
            q = torch.quantile(x0.flatten(1).abs().float(), self.percentile, dim=1).clamp(
                self.bound, self.most
            )
            q = q.to(x0).view(-1, *[1] * (x0.ndim - 1))
            return Denoised(x0.clamp(-q, q) * (self.bound / q), variance)

        return guided
