"""Key points: skeletons of people and single points, drawn from their coordinates."""

from __future__ import annotations

import colorsys
import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.control.detectors.alpha import Alpha
from sfumato.control.detectors.reading import scale_of
from sfumato.control.detectors.skeletons import Drawing, Mark, Place, read
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import to_bytes, to_image

Color = tuple[int, int, int]

# In order of painting: right arm and left, right leg and left, head.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Which two of the eighteen points each limb joins."""

_FINGERS = tuple(
    pairwise_ for start in (1, 5, 9, 13, 17) for pairwise_ in pairwise((0, *range(start, start + 4)))
)
_JOINT, _STICK, _FACE = 4.0, 4.0, 3.0
_DIMMED = 0.6


@dataclass(frozen=True)
class Keypoints:
    """Skeletons as OpenPose paints them, and single points as coloured discs, on black.

    Each limb is an ellipse of its own colour, dimmed, each joint a disc; fingers are thin lines with blue
    joints, a face is white dots. Single points take the colour told with them, else that of their label:
    hues spread evenly over the known labels, by the hash of one that is not; white without a label.

    Cao, Hidalgo, Simon, Wei & Sheikh 2018, "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part
    Affinity Fields", arXiv:1812.08008; drawn as released controls of poses were trained with.

    Args:
        labels: of single points, in the order of their hues.
        radius: of single points, in pixels at 512.
        confidence: points of persons of less are left out.
        size: height and width of the hint where the coordinates tell none.

    Raises:
        InvalidInput: settings that are none; coordinates of no known layout.
        NotFound: no such file.
    """

    labels: tuple[str, ...] = ()
    radius: float = 16.0
    confidence: float = 0.05
    size: tuple[int, int] = (512, 512)

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise InvalidInput("a label is named twice", where="keypoints.labels")
        if not self.radius > 0 or not 0 <= self.confidence <= 1 or min(self.size) < 1:
            raise InvalidInput("a radius, a confidence and a size are wanted", where="keypoints")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """Coordinates → (3, H, W) in [-1, 1].

        Args:
            given: plain data, or a JSON file of them, as `skeletons.read` takes them; of masks (n, H, W)
                bool each one's middle is drawn, of a picture (3 or 4, H, W) that of what `alpha` makes of it.
            seed: not heeded.
        """
        told = _middles(given) if isinstance(given, Tensor) else read(given, self.size, self.confidence)
        height, width = told.size
        canvas = Image.new("RGB", (width, height))
        pen, scale = _Pen(ImageDraw.Draw(canvas)), scale_of(height, width)
        for figure in told.figures:
            for number, (start, end) in enumerate(LIMBS):
                red, green, blue = (int(_DIMMED * value) for value in limb_color(number))
                pen.limb(figure.body[start], figure.body[end], _STICK * scale, (red, green, blue))
        for figure in told.figures:
            for number, place in enumerate(figure.body):
                pen.disc(place, _JOINT * scale, limb_color(number))
            for hand in figure.hands:
                for number, (start, end) in enumerate(_FINGERS):
                    pen.line(hand[start], hand[end], 2 * scale, _hue(number / len(_FINGERS)))
                for place in hand:
                    pen.disc(place, _JOINT * scale, (0, 0, 255))
            for place in figure.face:
                pen.disc(place, _FACE * scale, (255, 255, 255))
        for mark in told.marks:
            pen.disc(mark.place, self.radius * scale, mark.color or self.color_of(mark.label))
        return to_image(to_bytes(canvas))

    def color_of(self, label: str | None) -> Color:
        """The colour of single points of a label."""
        if label is None:
            return (255, 255, 255)
        if label in self.labels:
            return _hue(self.labels.index(label) / len(self.labels))
        return _hue(int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big") / 2**32)


@dataclass(frozen=True)
class _Pen:
    """Draws on a canvas; what has no place is passed over."""

    draw: ImageDraw.ImageDraw

    def disc(self, place: Place | None, radius: float, color: Color) -> None:
        """The pixels whose middles lie within a radius, and the one that the place is in."""
        if place is None:
            return
        # Row by row: PIL's own ellipses may miss the middle of small ones. It counts from the middle of the
        # first pixel, coordinates from its edge.
        x, y = place[0] - 0.5, place[1] - 0.5
        radius += 1e-6  # so that rounding of the place decides nothing
        self.draw.point((math.floor(place[0]), math.floor(place[1])), fill=color)
        for row in range(math.ceil(y - radius), math.floor(y + radius) + 1):
            half = math.sqrt(max(radius**2 - (row - y) ** 2, 0.0))
            left, right = math.ceil(x - half), math.floor(x + half)
            if left <= right:
                self.draw.line((left, row, right, row), fill=color)

    def line(self, start: Place | None, end: Place | None, width: float, color: Color) -> None:
        if start is not None and end is not None:
            ends = tuple(value - 0.5 for place in (start, end) for value in place)
            self.draw.line(ends, fill=color, width=max(1, round(width)))

    def limb(self, start: Place | None, end: Place | None, width: float, color: Color) -> None:
        """An ellipse from start to end, of a half width."""
        if start is None or end is None:
            return
        if width < 1:
            self.line(start, end, 2 * width, color)
            return
        x, y = (start[0] + end[0] - 1) / 2, (start[1] + end[1] - 1) / 2
        angle, half = math.atan2(end[1] - start[1], end[0] - start[0]), math.dist(start, end) / 2
        turns = [math.tau * step / 72 for step in range(72)]
        around = [(half * math.cos(turn), width * math.sin(turn)) for turn in turns]
        cos, sin = math.cos(angle), math.sin(angle)
        self.draw.polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in around], fill=color)


def limb_color(number: int) -> Color:
    """Of the limb, and of the joint, of a number: red first, each the next of eighteen hues around."""
    return _hue(number / 18)


def _hue(turn: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(turn % 1, 1, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def _middles(given: Tensor) -> Drawing:
    """One point for each mask, in the middle of its extent."""
    masks = given.cpu() if given.dtype == torch.bool else Alpha()(given) > 0
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or not masks.numel():
        raise InvalidInput(f"masks {tuple(given.shape)}", where="keypoints", do="give (n, height, width)")
    marks = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            middle = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
            marks.append(Mark((float(middle[0]), float(middle[1]))))
    return Drawing((), tuple(marks), (masks.shape[1], masks.shape[2]))
