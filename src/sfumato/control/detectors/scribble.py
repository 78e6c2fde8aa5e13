"""Scribble: outlines as a hand draws them, with a pen of any width."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.control.detectors.reading import colors, opencv, scale_of
from sfumato.control.detectors.soft_edge import SoftEdge
from sfumato.control.detectors.thinning import thinned
from sfumato.core.detector import Detector
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Scribble:
    """Edges brought to a line and drawn anew with a pen, white on black, as users sketch.

    With a seed the pen's width is drawn log-evenly between both limits, so that a control learns to take thin
    and thick strokes alike; without one it is their geometric mean. Strokes are an odd number of pixels wide.

    Zhang, Rao & Agrawala 2023, arXiv:2302.05543, section 4.1: sketches synthesised from HED's edges; widths
    as in ControlNet 1.1.

    Args:
        edges: the detector whose lines are drawn.
        thinnest, thickest: pens, in pixels at 512; no stroke is narrower than a pixel.
        threshold: how much of an edge a pixel must be, 0 to 1.
        shortest: pixels of a line, at 512, below which it is left out.

    Raises:
        InvalidInput: pens or a threshold that are none.
        MissingExtra: OpenCV or what `edges` needs is not installed.
    """

    edges: Detector = field(default_factory=SoftEdge)
    thinnest: float = 1.0
    thickest: float = 24.0
    threshold: float = 0.5
    shortest: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.thinnest <= self.thickest:
            raise InvalidInput(
                f"{self.thinnest} and {self.thickest} are no pens",
                where="scribble",
                do="thinnest <= thickest",
            )
        if not 0 < self.threshold < 1 or self.shortest < 0:
            raise InvalidInput("a threshold between 0 and 1, and a length, are wanted", where="scribble")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) of -1 and 1."""
        picture = colors(given, "scribble")
        scale = scale_of(*picture.shape[1:])
        found = (self.edges(picture, seed)[0] + 1) / 2 > self.threshold
        cv2 = opencv()
        lines = thinned(found).to(torch.uint8).numpy()
        _, pieces, about, _ = cv2.connectedComponentsWithStats(lines, connectivity=8)
        kept = torch.from_numpy(about)[:, cv2.CC_STAT_AREA] >= self.shortest * scale
        kept[0] = False
        strokes = kept[torch.from_numpy(pieces).long()]
        if not bool(strokes.any()):
            return torch.full_like(picture[:1], -1)
        away = cv2.distanceTransform((~strokes).to(torch.uint8).numpy(), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        pen = max(1.0, self.pen(seed) * scale)
        return (torch.from_numpy(away)[None] < pen / 2).float() * 2 - 1

    def pen(self, seed: str | None = None) -> float:
        """Width of the strokes under a seed, in pixels at 512."""
        place = 0.5 if seed is None else random.Random(f"scribble:{seed}").random()
        return self.thinnest * (self.thickest / self.thinnest) ** place
