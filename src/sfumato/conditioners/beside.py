"""Beside: what conditioners share that lay pictures and maps beside x, place by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.space import Space

CHUNK = 8
"""Pictures encoded at once."""


class Place:
    """The model's space, as a conditioner reaches it without holding its weights a second time."""

    def __init__(self) -> None:
        self.space: Space | None = None

    def of(self, name: str) -> Space:
        """The space; InvalidInput where the conditioner stands in no model."""
        if self.space is None:
            raise InvalidInput(
                "stands in no model, whose space it needs",
                where=name,
                do="make a Model of it, or bind(space)",
            )
        return self.space

    def size(self, name: str, height: int, width: int) -> tuple[int, int]:
        """Height and width of x for a picture of this size in pixels."""
        space = self.of(name)
        # Latents are of a size even where nobody can decode them.
        shape = getattr(space, "latent_shape", space.shape)(height, width)
        return shape[1], shape[2]

    def encode(self, name: str, pictures: Sequence[Tensor], device: torch.device) -> Tensor:
        """Pictures (C, H, W) → what the space makes of them (B, c, h, w); of like ones in a row, once."""
        space, different, index = self.of(name), list(pictures[:1]), [0]
        for before, here in pairwise(pictures):
            if not torch.equal(before, here):
                different.append(here)
            index.append(len(different) - 1)
        starts = range(0, len(different), CHUNK)
        made = [space.encode(torch.stack(different[i : i + CHUNK]).to(device)) for i in starts]
        return torch.cat(made)[index]


def rows_of(count: int, given: Any, name: str) -> list[Any]:
    """One value for all rows, or a list with one a row, as one a row."""
    rows = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} values for {count} pictures", where=name)
    return rows


def values_of(given: Any) -> list[Any]:
    """What is said at all, of one value or of a list."""
    return [each for each in (given if isinstance(given, list | tuple) else [given]) if each is not None]


def refuse_unheard(inputs: Mapping[str, Any], heeded: Sequence[str]) -> None:
    """InvalidInput for an input that is said and not heeded."""
    for name, value in inputs.items():
        if name not in heeded and value is not None:
            raise InvalidInput("this model heeds no such input", where=name, do=nearest(name, heeded))


def one_size(maps: Iterable[Tensor], name: str) -> tuple[int, int]:
    """Height and width of maps (.., H, W), all alike."""
    sizes = {(each.shape[-2], each.shape[-1]) for each in maps}
    if len(sizes) != 1:
        raise InvalidInput("pictures of one size are wanted", where=name, do="cut them to one")
    return sizes.pop()
