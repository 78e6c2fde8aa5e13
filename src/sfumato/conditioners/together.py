"""Together: several conditioners, each saying what it knows in a slot, or a share of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from torch import nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest

_SHARED = ("vector", "channels", "tokens", "image_tokens")
"""Slots in which several stand side by side, along dimension 1."""


class Part(Protocol):
    """Any other conditioner.

    One that may share a slot with others has, besides, `shares`: how much it always fills, by slot (numbers
    of a vector, channels, tokens), or None for whatever the others leave. One that needs words of its own
    read has `hear`, and is told the part that has `whole`, one vector for a text.
    """

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def __call__(self, count: int, **inputs: Any) -> Condition: ...

    def null(self, condition: Condition) -> Condition: ...

    def check(self, **inputs: Any) -> None: ...


@dataclass(eq=False, repr=False)
class Together(nn.Module):
    """What several conditioners say, slot by slot: a class in the vector and a picture in the channels.

    Those that tell their `shares` of a slot stand there side by side, in their order, and the null of each
    sees its own share alone: in SDXL's vector the pooled text is forgotten and the sizes after it are not.

    Args:
        parts: the conditioners, of distinct inputs; `size`, that of the picture made, all may heed.

    Raises:
        InvalidInput: fewer than two, an input that two would heed, a slot of which two would take what is
            left, or (when asked) a slot that two fill without telling their shares.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.parts) < 2:
            raise InvalidInput("give two conditioners or more", where="together.parts")
        told = [name for part in self.parts for name in part.inputs if name != "size"]
        if len(set(told)) != len(told):
            raise InvalidInput("two of them heed the same input", where="together.parts")
        for slot in _SHARED:
            if list(self._shares(slot).values()).count(None) > 1:
                raise InvalidInput("two of them take what is left of this slot", where=f"together.{slot}")
        speaker = next((part for part in self.parts if hasattr(part, "whole")), None)
        for part in self.parts:
            if (hear := getattr(part, "hear", None)) is not None:
                hear(speaker)
        self.held = nn.ModuleList([part for part in self.parts if isinstance(part, nn.Module)])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all their inputs."""
        return self._names("inputs")

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the inputs that a negative prompt does not unsay."""
        return self._names("kept")

    @property
    def denied(self) -> dict[str, Any]:
        """What a negative prompt says beside itself, by input."""
        return {name: value for part in self.parts for name, value in getattr(part, "denied", {}).items()}

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of the inputs that are pictures or maps: a text there is the path of one."""
        return self._names("pictures")

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the inputs of which one value is a list: a pair of sides, a layout."""
        return self._names("lists")

    @property
    def labels(self) -> dict[str, list[str]]:
        """Names by input, of those that have any."""
        return {key: names for part in self.parts for key, names in getattr(part, "labels", {}).items()}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """What each says of so many pictures, merged."""
        return self._merged([part(count, **_own(part, inputs)) for part in self.parts])

    def null(self, condition: Condition) -> Condition:
        """The null of each, of its own share."""
        return self._merged(
            [part.null(own) for part, own in zip(self.parts, self._cut(condition), strict=True)]
        )

    def size_of(self, **inputs: Any) -> tuple[int, int] | None:
        """(Height, width) of a picture of what is said, as the first of them tells that can."""
        asked = (part.size_of(**_own(part, inputs)) for part in self.parts if hasattr(part, "size_of"))
        return next((size for size in asked if size is not None), None)

    def check(self, **inputs: Any) -> None:
        """Refuse inputs that none heeds, and what each refuses."""
        for name, value in inputs.items():
            if name not in self.inputs and value is not None:
                raise InvalidInput(
                    "this model heeds no such input", where=name, do=nearest(name, self.inputs)
                )
        for part in self.parts:
            part.check(**_own(part, inputs))

    def _names(self, kind: str) -> tuple[str, ...]:
        """Names that the parts tell under an attribute, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in getattr(part, kind, ())))

    def _shares(self, slot: str) -> dict[int, int | None]:
        """How much of a slot the parts that tell it fill, by their number."""
        told = {number: getattr(part, "shares", {}) for number, part in enumerate(self.parts)}
        return {number: shares[slot] for number, shares in told.items() if slot in shares}

    def _cut(self, condition: Condition) -> list[Condition]:
        """For each part the condition with its share of every slot; of slots nobody shares, the whole."""
        owned = [condition] * len(self.parts)
        for slot in _SHARED:
            whole, shares = getattr(condition, slot), self._shares(slot)
            if whole is None or not shares:
                continue
            left = whole.shape[1] - sum(share or 0 for share in shares.values())
            start = 0
            for number in range(len(self.parts)):
                share = shares.get(number, 0)
                stop = start + (left if share is None else share)
                filled: dict[str, Any] = {slot: whole[:, start:stop] if number in shares else None}
                if slot == "tokens" and condition.mask is not None:
                    filled["mask"] = condition.mask[:, start:stop] if number in shares else None
                owned[number] = replace(owned[number], **filled)
                start = stop
            if start != whole.shape[1] or left < 0:
                raise InvalidInput(f"{whole.shape[1]} where its parts fill {start}", where=f"together.{slot}")
        return owned

    def _merged(self, said: list[Condition]) -> Condition:
        """The conditions as one."""
        whole = said[0]
        filled = {slot.name: [_fills(each, slot.name) for each in said] for slot in fields(Condition)}
        for slot, fills in filled.items():
            if slot == "mask" or sum(fills) < 2:
                continue
            shares = self._shares(slot) if slot in _SHARED else {}
            if any(filling and number not in shares for number, filling in enumerate(fills)):
                raise InvalidInput("two conditioners fill this slot", where=f"together.{slot}")
        for other in said[1:]:
            whole = whole.merge(other)
        return whole


def parts_of(conditioner: Any) -> tuple[Any, ...]:
    """The parts of one that puts several together; of any other, itself."""
    return conditioner.parts if isinstance(conditioner, Together) else (conditioner,)


def _fills(condition: Condition, slot: str) -> bool:
    value = getattr(condition, slot)
    return bool(value) if isinstance(value, tuple) else value is not None


def _own(part: Part, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name in part.inputs}
