"""Hough: the straight lines of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.control.detectors.reading import colors, levels, opencv, scale_of
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import to_bytes, to_image

_SCALE = 0.8


@dataclass(frozen=True)
class Hough:
    """Straight line segments, drawn white on black; of curves only what is nearly straight.

    They are found by LSD, whose false alarms are bounded: of all segments as many as one a picture would be
    found in noise. It takes the place of M-LSD, with which the released control of this name was trained.

    Grompone von Gioi, Jakubowicz, Morel & Randall 2012, "LSD: a Line Segment Detector", Image Processing On
    Line 2.

    Args:
        shortest: segments below are left out; a share of the shorter side.
        width: of the lines drawn, in pixels at 512, one at least.

    Raises:
        InvalidInput: a share or a width that is none.
        MissingExtra: OpenCV is not installed.
    """

    shortest: float = 0.1
    width: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < 1:
            raise InvalidInput(f"{self.shortest} is no share", where="hough.shortest", do="give 0 to 1")
        if not 0 < self.width <= 64:
            raise InvalidInput(f"{self.width} is no width", where="hough.width", do="give 1 to 64 pixels")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) in [-1, 1]."""
        picture = colors(given, "hough")
        height, width = picture.shape[1:]
        canvas = Image.new("L", (width, height))
        pen, thick = ImageDraw.Draw(canvas), max(1, round(self.width * scale_of(height, width)))
        for segment in self.segments(picture).tolist():
            pen.line([round(place) for place in segment], fill=255, width=thick)
        return to_image(to_bytes(canvas))

    def segments(self, given: Any) -> Tensor:
        """The segments (n, 4), longest first: x0, y0, x1, y1 of the ends, in pixels; 0 is the middle of the
        first pixel.
        """
        picture = colors(given, "hough")
        cv2 = opencv()
        grey = cv2.cvtColor(levels(picture), cv2.COLOR_RGB2GRAY)
        lines = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD, _SCALE).detect(grey)[0]
        if lines is None:
            return torch.zeros(0, 4)
        # OpenCV finds them at 0.8 of the size, and counts as if both pictures began in one point.
        found = torch.from_numpy(lines).view(-1, 4) + (1 / _SCALE - 1) / 2
        lengths = (found[:, 2:] - found[:, :2]).norm(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        return found[order][lengths[order] >= self.shortest * min(picture.shape[1:])]
