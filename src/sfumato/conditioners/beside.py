"""Beside: what conditioners share that lay pictures and maps beside x, place by place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.space import Space
from sfumato.data.picture import picture_of

CHUNK = 8
"""Pictures encoded at once."""

How = Literal["nearest", "bicubic", "later"]
"""How a map is resized: by the nearest pixel, smoothly, or not here but with what is done next."""

_SAME_SHAPE = 0.02
"""How far the ratios of sides may differ, as parts of one, where a map is stretched to a picture."""


class Beside(nn.Module):
    """A conditioner that reads pictures or maps and lays them beside x in the condition's channels.

    It knows the model's space without holding the space's weights a second time. A subclass says what it
    heeds, how that is read if it is no picture (`_read`), and makes a condition of it (`forward`).
    """

    inputs: ClassVar[tuple[str, ...]]
    kept: ClassVar[tuple[str, ...]]
    pictures: ClassVar[tuple[str, ...]]
    """What is read from files, the first first."""

    device_of: Tensor

    def __post_init__(self) -> None:
        super().__init__()
        # In a tuple: torch takes no module in it for one of the conditioner's own.
        self._bound: tuple[Space, ...] = ()
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    @property
    def shares(self) -> dict[str, int | None]:
        """All channels that others leave."""
        return {"channels": None}

    def bind(self, space: Space) -> None:
        """Where pictures are encoded, and whose places maps are resized to: the model's space."""
        self._bound = (space,)

    @property
    def space(self) -> Space:
        """The model's; InvalidInput where the conditioner stands in no model."""
        if not self._bound:
            raise InvalidInput(
                "stands in no model, whose space it needs",
                where=self.inputs[0],
                do="make a Model of it, or bind(space)",
            )
        return self._bound[0]

    def null(self, condition: Condition) -> Condition:
        """The same pictures: guidance steers what else is said."""
        return Condition(channels=condition.channels, vector=condition.vector)

    def size_of(self, **inputs: Any) -> tuple[int, int] | None:
        """The size of the first picture."""
        return first_size(self._read(row) for row in values_of(inputs.get(self.pictures[0])))

    def check(self, **inputs: Any) -> None:
        """Refuse what cannot be read before any work."""
        refuse_unheard(inputs, self.inputs)
        for row in values_of(inputs.get(self.pictures[0])):
            self._read(row)

    def _read(self, given: Any) -> Tensor:
        """What one value says, (.., H, W): a picture of the space, unless a subclass reads something else."""
        return picture_of(given, self.space.image_channels, self.pictures[0])

    def _places(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of x for a picture of this size in pixels."""
        # Latents are of a size even where nobody can decode them.
        shape = getattr(self.space, "latent_shape", self.space.shape)(height, width)
        return shape[1], shape[2]

    def _fitted(
        self, maps: Sequence[Tensor], inputs: Mapping[str, Any], how: How = "later", name: str | None = None
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """Maps (.., H, W) for the picture that is worked on, and its (height, width).

        That is the input `size`, told where a picture is generated, continued to sides the space takes, as an
        edit's picture is; else the maps' own, which are alike then.
        """
        asked, name = asked_size(inputs), name or self.pictures[0]
        if asked is None:
            return list(maps), one_size(maps, name)
        step = self.space.step
        sides = (asked[0] + -asked[0] % step, asked[1] + -asked[1] % step)
        made = [fitted(each, asked, how, name, step) for each in maps]
        return [each if asked == sides else _continued(each, asked, sides) for each in made], sides

    def _encoded(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (C, H, W) → what the space makes of them (B, c, h, w); of like ones in a row, once."""
        different, index = list(pictures[:1]), [0]
        for before, here in pairwise(pictures):
            if not torch.equal(before, here):
                different.append(here)
            index.append(len(different) - 1)
        starts, device = range(0, len(different), CHUNK), self.device_of.device
        made = [self.space.encode(torch.stack(different[i : i + CHUNK]).to(device)) for i in starts]
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
