"""Holes: pictures of another data set with something to be filled in, for models of inpainting."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.around import Around
from sfumato.data.emoji import Emoji
from sfumato.data.item import Dataset, Item


@dataclass
class Holes(Around):
    """Another data set, each picture told beside itself with a random hole: the inputs `image` and `mask`.

    The mask (1, H, W) is 1 where the picture is made anew. A share of the holes are the whole picture; of the
    others half are rectangles and half ellipses, of sides drawn evenly from one pixel to the whole side, each
    in an even place.

    Rombach et al. 2022, arXiv:2112.10752, section 4.5; masks as Stable Diffusion's inpainting model was
    trained, a quarter of them the full picture.

    Args:
        data: the other data set.
        full: share of masks that are the whole picture.

    Raises:
        InvalidInput: a share that is none.
    """

    data: Dataset = field(default_factory=Emoji)
    full: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.full <= 1:
            raise InvalidInput(f"{self.full} is no share", where="holes.full", do="give 0 to 1")

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides what the other's does, and the hole."""
        item = self.data.load(index, seed)
        hole = self._hole(random.Random(f"hole:{seed}:{index}"), *item.image.shape[1:])
        return Item(item.image, {**item.inputs, "image": item.image, "mask": hole})

    def _hole(self, chance: random.Random, height: int, width: int) -> Tensor:
        """(1, H, W) of ones and zeros."""
        # All numbers are drawn whatever comes of them, so that the holes of two settings compare.
        whole, round_, across, down, left, top = (chance.random() for _ in range(6))
        if whole < self.full:
            return torch.ones(1, height, width)
        w, h = 1 + int(across * width), 1 + int(down * height)
        x0, y0 = int(left * (width - w + 1)), int(top * (height - h + 1))
        x = (torch.arange(width) + 0.5 - x0) / w
        y = (torch.arange(height) + 0.5 - y0) / h
        if round_ < 0.5:
            inside = ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1))[None]
        else:
            inside = (x[None] - 0.5) ** 2 + (y[:, None] - 0.5) ** 2 <= 0.25
        return inside[None].float()
