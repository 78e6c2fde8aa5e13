"""Skeletons: coordinates of people and of single points, read from the layouts in which they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.core.errors import InvalidInput, NotFound

Place = tuple[float, float]
"""x and y, in pixels of the hint; the first pixel lies from 0 to 1."""

BODY = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow"),
    *("left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
"""OpenPose's eighteen points, in order."""

_COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee"),
    *("right_knee", "left_ankle", "right_ankle"),
)
# Of BODY_25's points the ninth is the middle of the hips, and the last six are of the feet.
_BODY_25 = (*BODY[:8], "hips", *BODY[8:])

_MOST = 100_000  # numbers of a document


class Figure(NamedTuple):
    """One person: eighteen points of the body, twenty-one of each hand, those of the face; None: not seen."""

    body: tuple[Place | None, ...]
    hands: tuple[tuple[Place | None, ...], ...] = ()
    face: tuple[Place | None, ...] = ()


class Mark(NamedTuple):
    """One point that is no part of a person, with what it is of and its colour, if they are told."""

    place: Place
    label: str | None = None
    color: tuple[int, int, int] | None = None


class Drawing(NamedTuple):
    """What is to be drawn, and on what: (height, width)."""

    figures: tuple[Figure, ...]
    marks: tuple[Mark, ...]
    size: tuple[int, int]


def read(told: Any, size: tuple[int, int], confidence: float) -> Drawing:
    """What plain data, or a JSON file of them, say.

    Args:
        told: {"people": [..]} as OpenPose writes, {"annotations": [..]} or a list of results as COCO does,
            {"points": [..]}, {"boxes": [..]}, or several of these at once; with "size": [height, width], or
            "canvas_height" and "canvas_width". Coordinates are pixels of that size, or fractions of it where
            none of a person, or of the points, is above 1; boxes are fractions.
        size: height and width where nothing is said of them.
        confidence: points of less, or of none, are not seen.

    Raises:
        NotFound: no such file.
        InvalidInput: no JSON, or of no such layout.
    """
    document = _document(told)
    height, width = _size(document, size)
    figures = []
    for number, person in enumerate(_rows(document, "people")):
        figures.append(_openpose(person, (height, width), confidence, f"people.{number}"))
    for number, person in enumerate(_rows(document, "annotations")):
        figures += _coco(person, (height, width), confidence, f"annotations.{number}")
    points = [_point(row, f"points.{n}") for n, row in enumerate(_rows(document, "points"))]
    fractions = all(max(mark.place) <= 1 for mark in points)
    across, down = (width, height) if fractions else (1, 1)
    marks = [mark._replace(place=(mark.place[0] * across, mark.place[1] * down)) for mark in points]
    for number, row in enumerate(_rows(document, "boxes")):
        where = f"boxes.{number}"
        left, top, wide, high = _numbers(row.get("box"), where, 4)
        place = ((left + wide / 2) * width, (top + high / 2) * height)
        marks.append(Mark(place, _label(row, where), _color(row, where)))
    return Drawing(tuple(figures), tuple(marks), (height, width))


def _document(told: Any) -> Mapping[str, Any]:
    if isinstance(told, str | Path):
        path = Path(told).expanduser()
        if not path.is_file():
            raise NotFound("no such file of key points", where=str(path))
        try:
            told = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise InvalidInput(f"no JSON: {str(error)[:80]}", where=str(path)) from None
    if isinstance(told, list):
        first = told[0] if told and isinstance(told[0], Mapping) else {}
        kind = next((name for key, name in _LISTS.items() if key in first), "points")
        told = {kind: told}
    known = ("people", "annotations", "points", "boxes")
    if not isinstance(told, Mapping) or not any(name in told for name in known):
        raise InvalidInput("tells no key points", where="keypoints", do=f"give {', '.join(known)}")
    pictures = {row.get("image_id") for row in _rows(told, "annotations")}
    if len(pictures) > 1:
        raise InvalidInput(
            f"tells of {len(pictures)} pictures", where="annotations", do="give those of one image_id"
        )
    return told


_LISTS = {"keypoints": "annotations", "pose_keypoints_2d": "people", "box": "boxes"}


def _size(document: Mapping[str, Any], usual: tuple[int, int]) -> tuple[int, int]:
    said = document.get("size", [document.get("canvas_height"), document.get("canvas_width")])
    if said == [None, None]:
        images = _rows(document, "images")
        said = [images[0].get("height"), images[0].get("width")] if len(images) == 1 else list(usual)
    height, width = _numbers(said, "size", 2)
    if min(height, width) < 1 or max(height, width) > 2**14:
        raise InvalidInput(f"{height:g} x {width:g} is no size", where="size", do="give [height, width]")
    return round(height), round(width)


def _openpose(person: Mapping[str, Any], size: tuple[int, int], least: float, where: str) -> Figure:
    """A person of OpenPose: of 18 or 25 points, with hands and face where they are told."""
    told = {
        part: _triples(person.get(f"{part}_keypoints_2d"), f"{where}.{part}_keypoints_2d")
        for part in ("pose", "hand_left", "hand_right", "face")
    }
    scaled = dict(zip(told, _scaled(list(told.values()), size, least), strict=True))
    order = {0: BODY, 18: BODY, 25: _BODY_25}.get(len(scaled["pose"]))
    if order is None:
        raise InvalidInput(f"{len(scaled['pose'])} points are no body", where=where, do="give 18 or 25")
    hands = tuple(hand for hand in (scaled["hand_left"], scaled["hand_right"]) if hand)
    if any(len(hand) != 21 for hand in hands):
        raise InvalidInput("a hand has 21 points", where=where)
    return Figure(_ordered(scaled["pose"], order), hands, scaled["face"])


def _coco(row: Mapping[str, Any], size: tuple[int, int], least: float, where: str) -> list[Figure]:
    """A person of COCO, of 17 points or in OpenPose's order of 18; none of what has no key points."""
    if "keypoints" not in row:
        return []
    triples = _triples(row["keypoints"], f"{where}.keypoints")
    order = {17: _COCO, 18: BODY}.get(len(triples))
    if order is None:
        raise InvalidInput(f"{len(triples)} points are no body", where=where, do="give 17 or 18")
    return [Figure(_ordered(_scaled([triples], size, least)[0], order))]


def _ordered(places: Sequence[Place | None], order: Sequence[str]) -> tuple[Place | None, ...]:
    """Points of any order in OpenPose's; a neck that is not told is in the middle of the shoulders."""
    known = dict(zip(order, places, strict=False))
    left, right = known.get("left_shoulder"), known.get("right_shoulder")
    if "neck" not in order and left and right:
        known["neck"] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return tuple(known.get(name) for name in BODY)


def _scaled(
    parts: Sequence[Sequence[tuple[float, float, float]]], size: tuple[int, int], least: float
) -> list[tuple[Place | None, ...]]:
    """Parts of one person in pixels, None for what is not seen."""
    seen = [[None if c <= 0 or c < least else (x, y) for x, y, c in part] for part in parts]
    fractions = all(max(place) <= 1 for part in seen for place in part if place)
    down, across = size if fractions else (1, 1)
    return [tuple(place and (place[0] * across, place[1] * down) for place in part) for part in seen]


def _point(row: Any, where: str) -> Mark:
    """[x, y], or {"x": .., "y": .., "label": .., "color": [r, g, b]}."""
    if isinstance(row, Mapping) and "x" in row:
        x, y = _numbers([row.get("x"), row.get("y")], where, 2)
        return Mark((x, y), _label(row, where), _color(row, where))
    x, y = _numbers(row, where, 2)
    return Mark((x, y))


def _label(row: Mapping[str, Any], where: str) -> str | None:
    label = row.get("label")
    if label is not None and not isinstance(label, str):
        raise InvalidInput(f"{label!r} is no label", where=where)
    return label


def _color(row: Mapping[str, Any], where: str) -> tuple[int, int, int] | None:
    if row.get("color") is None:
        return None
    red, green, blue = (round(value) for value in _numbers(row["color"], f"{where}.color", 3))
    if min(red, green, blue) < 0 or max(red, green, blue) > 255:
        raise InvalidInput(f"{row['color']} is no colour", where=where, do="give 0 to 255, three times")
    return red, green, blue


def _rows(document: Mapping[str, Any], name: str) -> list[Any]:
    rows = document.get(name) or []
    good = isinstance(rows, list | tuple) and (
        name == "points" or all(isinstance(row, Mapping) for row in rows)
    )
    if not good or len(rows) > _MOST:
        raise InvalidInput("is no list of such", where=name)
    return list(rows)


def _triples(flat: Any, where: str) -> list[tuple[float, float, float]]:
    """x, y and confidence, one after another."""
    numbers = _numbers([] if flat is None else flat, where)
    if len(numbers) % 3:
        raise InvalidInput(f"{len(numbers)} numbers are not x, y and confidence each", where=where)
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def _numbers(given: Any, where: str, count: int | None = None) -> list[float]:
    good = isinstance(given, list | tuple) and len(given) <= _MOST
    if not good or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in given
    ):
        raise InvalidInput("is no list of numbers", where=where)
    if count is not None and len(given) != count:
        raise InvalidInput(f"{len(given)} numbers, {count} are wanted", where=where)
    return [float(value) for value in given]
