"""Low resolution: pictures of another data set with small copies of themselves, for models that enlarge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F

from sfumato.core.errors import InvalidInput
from sfumato.data.around import Around
from sfumato.data.emoji import Emoji
from sfumato.data.item import Dataset, Item


@dataclass
class LowRes(Around):
    """Another data set, each picture told beside its small copy: the input `low_res` (C, H / factor, ..).

    Args:
        data: the other data set.
        factor: how many times smaller, along a side.
        kernel: "area" averages the pixels that become one, as the conditioner `low_res` does with larger
            pictures; "bicubic" is antialiased, as most programs shrink pictures.

    Raises:
        InvalidInput: a factor below 1, or (of an item) sides that do not divide by it.
    """

    data: Dataset = field(default_factory=Emoji)
    factor: int = 4
    kernel: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        if self.factor < 1 or self.kernel not in ("area", "bicubic"):
            raise InvalidInput("a factor of 1 or more, area or bicubic, is wanted", where="low_res")

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides what the other's does."""
        item = self.data.load(index, seed)
        height, width = item.image.shape[1:]
        if height % self.factor or width % self.factor:
            raise InvalidInput(f"{width} x {height} does not divide by {self.factor}", where="low_res.factor")
        size = (height // self.factor, width // self.factor)
        if self.kernel == "area":
            small = F.interpolate(item.image[None], size, mode="area")[0]
        else:
            small = F.interpolate(item.image[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        return Item(item.image, {**item.inputs, "low_res": small})
