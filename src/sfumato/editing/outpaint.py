"""Outpaint: a picture continued beyond its frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sfumato.core.edit import Canvas, feathered
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import pictures


@dataclass(frozen=True)
class Outpaint:
    """Continue a picture to the left, right, top and bottom; what is given comes out as it went in.

    Inpainting of the margin: see `inpaint`. Outside, the walk begins from the picture's last pixels. What is
    larger than the model was trained on is better continued piece by piece: see `extend`.

    Args:
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list with one for each picture made.
        left, right, top, bottom: pixels to add.
        strength: the part of the walk that is walked.
        feather: width in pixels, inside what is made anew, of the band where new and old are mixed.
        overlap: width in pixels of the rim of the picture itself, where it is continued, that is made anew
            too, so that the two can come to terms; 8 to 32 is usual.
    """

    image: Any = None
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    strength: float = 1.0
    feather: int = 0
    overlap: int = 0

    def __post_init__(self) -> None:
        margins = (self.left, self.right, self.top, self.bottom)
        if min(margins) < 0 or max(margins) > 8192 or not any(margins):
            raise InvalidInput(
                f"margins of {margins} pixels", where="outpaint", do="give 0 to 8192, one above 0"
            )
        if not 0 <= self.feather <= 256:
            raise InvalidInput(f"{self.feather} is not from 0 to 256 pixels", where="outpaint.feather")
        if not 0 <= self.overlap <= 256:
            raise InvalidInput(f"{self.overlap} is not from 0 to 256 pixels", where="outpaint.overlap")

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The picture with its margin, which may change; `size` is that of the picture without it."""
        image = pictures(self.image, channels, "image", size)
        rim = (self.left, self.right, self.top, self.bottom)
        change = torch.ones(
            1, 1, image.shape[2] + self.top + self.bottom, image.shape[3] + self.left + self.right
        )
        # Where the picture is not continued its rim meets nothing new.
        top, bottom, left, right = (
            side + self.overlap if side else 0 for side in (self.top, self.bottom, self.left, self.right)
        )
        kept = change[..., top : max(change.shape[2] - bottom, 0), left : max(change.shape[3] - right, 0)]
        if not kept.numel():
            raise InvalidInput("nothing of the picture is left", where="outpaint.overlap", do="give less")
        kept.zero_()
        return Canvas(F.pad(image, rim, "replicate"), feathered(change, self.feather), self.strength)
