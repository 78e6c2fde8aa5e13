"""Beside: what conditioners share that lay pictures and maps beside x, place by place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.space import Space

CHUNK = 8
"""Pictures encoded at once."""

How = Literal["nearest", "bicubic", "later"]
"""How a map is resized: by the nearest pixel, smoothly, or not here but with what is done next."""

_SAME_SHAPE = 0.02
"""How far the ratios of sides may differ, as parts of one, where a map is stretched to a picture."""


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

    def fitted(
        self, name: str, maps: Sequence[Tensor], inputs: Mapping[str, Any], how: How = "later"
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """Maps (.., H, W) for the picture that is worked on, and its (height, width).

        That is the input `size`, told where a picture is generated, continued to sides the space takes, as an
        edit's picture is; else the maps' own, which are alike then.
        """
        asked = asked_size(inputs)
        if asked is None:
            return list(maps), one_size(maps, name)
        step = self.of(name).step
        sides = (asked[0] + -asked[0] % step, asked[1] + -asked[1] % step)
        made = [fitted(each, asked, how, name, step) for each in maps]
        return [each if asked == sides else _continued(each, asked, sides) for each in made], sides

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


def first_size(maps: Iterable[Tensor]) -> tuple[int, int] | None:
    """Height and width of the first of maps (.., H, W), if there is one."""
    return next(((each.shape[-2], each.shape[-1]) for each in maps), None)


def fitted(
    given: Tensor, size: tuple[int, int], how: How, name: str, step: int = 1, what: str = "map"
) -> Tensor:
    """A map (.., H, W) for a picture of `size`, stretched to it; refused where the shapes differ.

    One of nearly the picture's shape that lacks less than `step` pixels of either side is continued by its
    last pixels: pictures grow so to sides that a model takes.

    Raises:
        InvalidInput: the ratio of its sides is another.
    """
    (height, width), (high, wide) = given.shape[-2:], size
    if (height, width) == size:
        return given
    if abs(math.log(height * wide / (width * high))) > _SAME_SHAPE:
        if 0 <= high - height < step and 0 <= wide - width < step:
            return _continued(given, (height, width), size)
        raise InvalidInput(
            f"a {what} of {width} x {height} for a picture of {wide} x {high}",
            where=name,
            do="cut one of them to the shape of the other",
        )
    if how == "nearest":
        return _picked(given, _nearest(height, high), _nearest(width, wide))
    if how == "later":
        return given
    flat = given.reshape(1, -1, height, width)
    return F.interpolate(flat, size, mode="bicubic", antialias=True).view(*given.shape[:-2], high, wide)


def asked_size(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    """The one (height, width) of the picture that is made, if it is told, for all rows or of each."""
    size = inputs.get("size")
    rows = size if isinstance(size, list) else [size]
    pairs = {tuple(row) for row in rows if row is not None}
    if len(pairs) > 1:
        raise InvalidInput(f"{len(pairs)} sizes at once", where="size", do="make pictures of one size")
    return pairs.pop() if pairs else None


def _continued(given: Tensor, size: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """Of a map for a picture of `size`, with its last row and column over again, one for `sides`."""
    lines = [
        (torch.arange(side) * length // whole).clamp(max=length - 1)
        for length, whole, side in zip(given.shape[-2:], size, sides, strict=True)
    ]
    return _picked(given, *lines)


def _nearest(length: int, wanted: int) -> Tensor:
    return ((torch.arange(wanted) + 0.5) * length / wanted).long()


def _picked(given: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return given[..., rows[:, None].to(given.device), columns.to(given.device)]
