"""Several conditions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level


@dataclass(frozen=True)
class Compose:
    """Guidance by several conditions, each with its own scale; a negative scale steers away.

        x0 = x0(null) + scale · (x0(condition) - x0(null)) + Σ_i scales_i · (x0(others_i) - x0(null))

    One batched call of all branches: null, the condition, then the others.

    Liu, Li, Du, Torralba & Tenenbaum 2022, "Compositional Visual Generation with Composable Diffusion
    Models", arXiv:2206.01714, equation 11.

    Args:
        scale: of the main condition.
        scales: of the other conditions.
        others: the other conditions, each of as many rows as the batch.
    """

    scale: float = 7.5
    scales: tuple[float, ...] = ()
    others: Sequence[Condition] = field(default=())

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.others):
            raise InvalidInput(
                f"{len(self.scales)} scales for {len(self.others)} conditions", where="compose.scales"
            )

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser."""

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            branches = (null.tile(len(x)), condition, *(other.tile(len(x)) for other in self.others))
            every = denoiser(torch.cat([x] * len(branches)), level, Condition.stack(branches))
            without, *given = every.x0.chunk(len(branches))
            x0 = without
            for scale, estimate in zip((self.scale, *self.scales), given, strict=True):
                x0 = x0 + scale * (estimate - without)
            variance = None if every.variance is None else every.variance.chunk(len(branches))[1]
            return Denoised(x0, variance)

        return guided
