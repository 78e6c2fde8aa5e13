"""Guidance: what changes the estimate, from denoiser to denoiser."""

from __future__ import annotations

from typing import Protocol

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoiser


class Guidance(Protocol):
    """(denoiser, null) → denoiser, where `null` is the condition that says nothing, or a negative prompt."""

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser: ...
