"""Layouts: what conditioners share that are told labelled boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sfumato.core.errors import InvalidInput, nearest

Box = tuple[float, float, float, float]
"""Left, top, width and height, as parts of the whole picture's."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
FLAGS = ("group", "occluded", "depiction", "inside")
"""What may be said of an object beside its label: {"group": True}."""
PARTS: dict[str, Any] = {"boxes": Mapping, "boxes_crop": (int, float)}
"""The inputs, and what a single value of each is a list of."""
_LEAST = 1e-4


def _object_of(thing: Any, names: Collection[str] | None) -> tuple[str, Box]:
    """The label and the box of what is told of one object; without names, any words are a label."""
    if not isinstance(thing, Mapping) or "label" not in thing or "box" not in thing:
        raise InvalidInput(
            f"{thing!r:.80} is no object", where="boxes", do='give {"label": NAME, "box": [x0, y0, w, h]}'
        )
    flags = FLAGS if names is not None else ()
    if unknown := set(thing) - {"label", "box", *flags}:
        raise InvalidInput(f"nothing is known of {sorted(map(str, unknown))[0]!r}", where="boxes")
    if names is None:
        if not isinstance(thing["label"], str) or not thing["label"].strip():
            raise InvalidInput(f"{thing['label']!r:.40} says nothing", where="boxes", do="give it words")
    elif thing["label"] not in names:
        label = str(thing["label"])
        raise InvalidInput(f"unknown label {label!r}", where="boxes", do=nearest(label, names))
    return thing["label"], _box_of(thing["box"], "boxes")


def told(count: int, inputs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(Layout, crop) of each row, of one for all rows or a list with one a row."""
    layouts, crops = (_each_of(count, name, inputs.get(name), part) for name, part in PARTS.items())
    return list(zip(layouts, crops, strict=True))


def check_layouts(inputs: Mapping[str, Any], look: Callable[[Any, Any], object]) -> None:
    """Look at every layout and at every crop, each by itself, with what refuses bad ones."""
    for name, part in PARTS.items():
        given: Any = inputs.get(name)
        for row in [given] if _single(given, part) else given:
            look(*((row, None) if name == "boxes" else (None, row)))


def seen(layout: Any, crop: Any, names: Collection[str] | None) -> tuple[list[tuple[str, Box, Any]], Box]:
    """(Label, box, all that is said) of the objects of which something is shown; and what is shown.

    Names are the labels there are; None where any words are one.
    """
    shown = WHOLE if crop is None else _box_of(_read("boxes_crop", crop), "boxes_crop")
    things = [] if layout is None else _read("boxes", layout)
    objects = [(*_object_of(thing, names), thing) for thing in things]
    return [each for each in objects if _meet(each[1], shown)], shown


def refuse_namesakes(names: Collection[str], where: str) -> None:
    """InvalidInput for labels that are none, or twice the same."""
    if not names or len(set(names)) != len(names):
        raise InvalidInput("give a list of distinct names", where=where)


def _read(name: str, given: Any) -> Any:
    """A list, which may be written as JSON."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise InvalidInput(f"is no JSON: {error}", where=name) from error
    if not isinstance(given, list | tuple):
        raise InvalidInput(f"{given!r:.80} is no list", where=name)
    return given


def _box_of(given: Any, name: str) -> Box:
    """A box, cut at the edges of the whole."""
    numbers = list(given) if isinstance(given, list | tuple) else []
    good = len(numbers) == 4 and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    x, y, width, height = numbers if good else (0.0, 0.0, 0.0, 0.0)
    x0, y0, x1, y1 = (min(max(n, 0.0), 1.0) for n in (x, y, x + width, y + height))
    if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) <= _LEAST:
        raise InvalidInput(
            f"{given!r:.80} is no box in the picture",
            where=name,
            do="give left, top, width and height as parts of the whole, 0 to 1",
        )
    return x0, y0, x1 - x0, y1 - y0


def _meet(one: Box, other: Box) -> bool:
    """Whether two boxes share an area."""
    return all(min(one[i] + one[i + 2], other[i] + other[i + 2]) > max(one[i], other[i]) for i in (0, 1))


def _single(given: Any, part: Any) -> bool:
    """Whether it is one value, itself a list of such parts, and not one a row."""
    return not isinstance(given, list | tuple) or not given or isinstance(given[0], part)


def _each_of(count: int, name: str, given: Any, part: Any) -> list[Any]:
    """One value a row, of one for all rows or a list with one a row."""
    rows = [given] * count if _single(given, part) else list(given)
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} values for {count} pictures", where=name)
    return rows
