"""Hinted: pictures of another data set with hints that a detector makes of them, for training controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sfumato.core.detector import Detector
from sfumato.core.errors import InvalidInput, nearest
from sfumato.data.around import Around
from sfumato.data.item import Dataset, Item


@dataclass
class Hinted(Around):
    """Another data set, each picture told beside what a detector sees in it: the input `hint` (colors, H, W).

    For several hints put one around the other. What a detector leaves to chance follows from the item's seed
    and index.

    Args:
        data: the other data set.
        detector: what makes the hint, such as {name: canny}.
        told: the input's name, one of the conditioner's `hints`.
        of: what the detector is given: "" is the picture; "alpha" the picture with its transparency, of a
            data set that has it; else an input of the item by its name: boxes, whole, semantic_map, depth.
        colors: channels of the hint, 3 or 1, as the conditioner is set; one that is grey is repeated.

    Raises:
        InvalidInput: a name or a number that is none; of an item, no such input, or a hint that does not fit
            the picture.
    """

    data: Dataset
    detector: Detector
    told: str = "hint"
    of: str = ""
    colors: int = 3

    def __post_init__(self) -> None:
        if not self.told.isidentifier():
            raise InvalidInput(f"{self.told!r} is no name of an input", where="hinted.told")
        if self.colors not in (1, 3):
            raise InvalidInput(f"{self.colors} channels are none of a hint", where="hinted.colors")
        if self.of == "alpha" and not hasattr(self.data, "transparent"):
            raise InvalidInput(
                f"{type(self.data).__name__.lower()} has no transparency",
                where="hinted.of",
                do="leave it out",
            )

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides what the other's does, and what is left to chance here."""
        item = self.data.load(index, seed)
        hint = self.detector(self._given(item, index, seed), f"{self.told}:{seed}:{index}")
        size = item.image.shape[1:]
        if hint.shape[1:] != size or hint.shape[0] not in (1, self.colors):
            raise InvalidInput(
                f"the hint {tuple(hint.shape)} does not fit a picture of {size[1]} x {size[0]}",
                where="hinted.detector",
                do="" if hint.shape[1:] != size else "set colors to 3",
            )
        return Item(item.image, {**item.inputs, self.told: hint.expand(self.colors, -1, -1).contiguous()})

    def _given(self, item: Item, index: int, seed: int) -> Any:
        """What the detector is given of an item."""
        if not self.of:
            return item.image
        if self.of == "alpha":
            return self.data.transparent(index, seed)  # type: ignore[attr-defined]
        value = item.inputs.get(self.of)
        if value is None:
            raise InvalidInput(
                f"an item has no {self.of!r}", where="hinted.of", do=nearest(self.of, ["alpha", *item.inputs])
            )
        if isinstance(value, Tensor) or not isinstance(value, list | tuple):
            return value
        # Coordinates alone do not say of what size the picture is.
        return {self.of: value, "size": list(item.image.shape[1:])}
