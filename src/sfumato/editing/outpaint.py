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

    Inpainting of the margin: see `inpaint`. Outside, the walk begins from the picture's last pixels.

    Args:
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list with one for each picture made.
        left, right, top, bottom: pixels to add.
        strength: the part of the walk that is walked.
        feather: width in pixels, outside the picture's frame, of the band where new and old are mixed.
    """

    image: Any = None
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    strength: float = 1.0
    feather: int = 0

    def __post_init__(self) -> None:
        margins = (self.left, self.right, self.top, self.bottom)
        if min(margins) < 0 or max(margins) > 8192 or not any(margins):
            raise InvalidInput(
                f"margins of {margins} pixels", where="outpaint", do="give 0 to 8192, one above 0"
            )
        if not 0 <= self.feather <= 256:
            raise InvalidInput(f"{self.feather} is not from 0 to 256 pixels", where="outpaint.feather")

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The picture with its margin, which may change; `size` is that of the picture without it."""
        image = pictures(self.image, channels, "image", size)
        rim = (self.left, self.right, self.top, self.bottom)
        change = F.pad(torch.zeros(1, 1, *image.shape[2:]), rim, value=1.0)
        return Canvas(F.pad(image, rim, "replicate"), feathered(change, self.feather), self.strength)
