"""Layouts: labelled boxes of what a picture shows, as parts of its width and height."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard


def is_layout(given: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether it is a list of objects, each with a box of four numbers: left, top, width, height."""
    return isinstance(given, list | tuple) and all(
        isinstance(thing, Mapping) and isinstance(box := thing.get("box"), list | tuple) and len(box) == 4
        for thing in given
    )


def mirrored(layout: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The layout of the picture seen in a mirror, left and right exchanged: x0 becomes 1 - x0 - width."""
    return [{**thing, "box": mirrored_box(thing["box"])} for thing in layout]


def mirrored_box(box: Sequence[float]) -> list[float]:
    """One box seen in a mirror."""
    return [1 - box[0] - box[2], *box[1:]]
