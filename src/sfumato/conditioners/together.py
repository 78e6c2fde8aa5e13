"""Together: several conditioners, each saying what it knows in a slot of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest


class Part(Protocol):
    """Any other conditioner."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def __call__(self, count: int, **inputs: Any) -> Condition: ...

    def null(self, condition: Condition) -> Condition: ...

    def check(self, **inputs: Any) -> None: ...


@dataclass(eq=False, repr=False)
class Together(nn.Module):
    """What several conditioners say, slot by slot: a class in the vector and a picture in the channels.

    Args:
        parts: the conditioners, of distinct inputs, no two of which fill the same slot.

    Raises:
        InvalidInput: fewer than two, an input that two would heed, or (when asked) a slot that two fill.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.parts) < 2:
            raise InvalidInput("give two conditioners or more", where="together.parts")
        if len(set(self.inputs)) != len(self.inputs):
            raise InvalidInput("two of them heed the same input", where="together.parts")
        self.held = nn.ModuleList([part for part in self.parts if isinstance(part, nn.Module)])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all their inputs."""
        return tuple(name for part in self.parts for name in part.inputs)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Names by input, of those that have any."""
        return {key: names for part in self.parts for key, names in getattr(part, "labels", {}).items()}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """What each says of so many pictures, merged."""
        return _merged([part(count, **_own(part, inputs)) for part in self.parts])

    def null(self, condition: Condition) -> Condition:
        """The null of each."""
        return _merged([part.null(condition) for part in self.parts])

    def check(self, **inputs: Any) -> None:
        """Refuse inputs that none heeds, and what each refuses."""
        for name, value in inputs.items():
            if name not in self.inputs and value is not None:
                raise InvalidInput(
                    "this model heeds no such input", where=name, do=nearest(name, self.inputs)
                )
        for part in self.parts:
            part.check(**_own(part, inputs))


def _own(part: Part, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name in part.inputs}


def _merged(said: list[Condition]) -> Condition:
    """Conditions that fill different slots, as one."""
    whole = said[0]
    for other in said[1:]:
        for slot in fields(Condition):
            mine, his = getattr(whole, slot.name), getattr(other, slot.name)
            if mine is not None and mine != () and his is not None and his != ():
                raise InvalidInput("two conditioners fill this slot", where=f"together.{slot.name}")
        whole = whole.merge(other)
    return whole
