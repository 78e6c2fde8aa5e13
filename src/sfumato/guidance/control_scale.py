"""How strongly controls are heeded, when, and on which side of guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level


@dataclass(frozen=True)
class ControlScale:
    """Controls weighed: residual k of K times strength · decay^(K - 1 - k) · (H_0 / H_k)^power.

    It stands inside of what guides (first in the list), where it sees on which side of guidance a row is.
    Where sigma/alpha is not in (low, high] controls are silent, and cost nothing. Guess mode, a control
    without a prompt, is `conditional` with decay .825, guided by 3 to 5; the paper's resolution weighting,
    for guidance that is strong, is `conditional` with power 1.

    Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models",
    arXiv:2302.05543, section 3.4; guess mode as its authors released it.

    Args:
        strength: of all controls, or one a control; 0 is none.
        decay: how much weaker each residual is than the next one towards the middle.
        power: of how many times smaller a residual's map is than the first.
        conditional: heeded where something is said alone, and not on the null's side of guidance.
        low: below and at this sigma/alpha controls are silent.
        high: above this too.

    Raises:
        InvalidInput: numbers that are none of these.
    """

    strength: float | tuple[float, ...] = 1.0
    decay: float = 1.0
    power: float = 0.0
    conditional: bool = False
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        numbers = (*self._strengths, self.decay, self.power)
        if not all(map(math.isfinite, numbers)) or self.decay < 0 or not self._strengths:
            raise InvalidInput(
                "strength and power are finite numbers, decay one of 0 or more", where="control_scale"
            )
        if not self.low < self.high:
            raise InvalidInput(f"nothing lies above {self.low} up to {self.high}", where="control_scale")

    @property
    def _strengths(self) -> tuple[float, ...]:
        return self.strength if isinstance(self.strength, tuple) else (self.strength,)

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The denoiser whose controls are so weighed; levels are floats, as while sampling."""

        def weighed(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            if not condition.hints:
                raise InvalidInput("this model is told no hints", where="control_scale", do="leave it out")
            if not self.low < level.ratio <= self.high or not any(self._strengths):
                return denoiser(x, level, replace(condition, hints=()))
            return denoiser(x, level, replace(condition, hint_scales=self._scales(condition)))

        return weighed

    def _scales(self, condition: Condition) -> Tensor:
        """(B, controls, 3)."""
        count = len(condition.hints)
        strengths = self._strengths if isinstance(self.strength, tuple) else self._strengths * count
        if len(strengths) != count:
            raise InvalidInput(f"{len(strengths)} strengths for {count} controls", where="control_scale")
        rows = torch.tensor([[strength, self.decay, self.power] for strength in strengths])
        if not self.conditional or condition.branch is None:
            return rows.expand(len(condition), -1, -1)
        silent = torch.tensor([[0.0, self.decay, self.power]] * count)
        # No row is picked by what it holds: memory is measured with rows that hold nothing.
        device = condition.branch.device
        null_side = (condition.branch == 0)[:, None, None]
        return torch.where(null_side, silent.to(device), rows.to(device))
