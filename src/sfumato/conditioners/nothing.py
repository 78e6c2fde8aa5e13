"""Nothing: the conditioner of unconditional models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


@dataclass(eq=False, repr=False)
class Nothing(nn.Module):
    """No condition: the model is unconditional."""

    def __post_init__(self) -> None:
        super().__init__()

    inputs = ()

    def forward(self, count: int, **inputs: Any) -> Condition:
        """An empty Condition, whatever a data set says beside its pictures."""
        return Condition()

    def null(self, condition: Condition) -> Condition:
        """The same nothing."""
        return condition

    def check(self, **inputs: Any) -> None:
        """Refuse inputs a user gives: an unconditional model heeds none."""
        for name, value in inputs.items():
            if value is not None:
                raise InvalidInput("this model is unconditional and heeds no inputs", where=name)
