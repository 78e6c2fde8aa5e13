"""Control: the contract of what reads a hint beside a network and adds to the network's features."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sfumato.core.condition import Condition


class Control(Protocol):
    """Reads a hint, a picture, and says what is added to a network's features, as `residuals` takes it."""

    @property
    def factor(self) -> int:
        """How many pixels of the hint, along a side, make one place of x."""
        ...

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """x (B, C, H, W), time (B,), what the network is told, hint (B, c, factor · H, factor · W)."""
        ...
