"""Region: a part of a picture, its edge sharp or soft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.edit import feathered
from sfumato.core.errors import InvalidInput

Read = Callable[[Any], Tensor]
"""A mask as it is given → (1, 1, H, W), ones inside."""


@dataclass(frozen=True)
class Region:
    """A box or a mask in a picture, inside of which something holds.

    Args:
        box: (left, top, right, bottom) in pixels, right and bottom not included; what lies beyond the picture
            does not count.
        mask: in its place, a picture that is white inside, as whoever uses the region reads it, or a tensor
            (H, W) of ones and zeros; one of another size is resized.
        feather: over so many pixels inside the edge it rises from nothing to all.

    Raises:
        InvalidInput: both or neither, a box without pixels; when laid, none in the picture.
    """

    box: tuple[int, int, int, int] | None = None
    mask: Any = None
    feather: int = 0

    def __post_init__(self) -> None:
        if (self.box is None) == (self.mask is None):
            raise InvalidInput("give a box or a mask", where="region")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise InvalidInput(
                f"{self.box} has no pixels", where="region.box", do="give left, top, right, bottom"
            )
        if not 0 <= self.feather <= 256:
            raise InvalidInput(f"{self.feather} is not from 0 to 256 pixels", where="region.feather")

    def over(self, size: tuple[int, int], read: Read | None = None) -> Tensor:
        """How much of each pixel of a picture of (height, width) lies inside: (1, 1, height, width), 0 to 1.

        Args:
            size: of the picture.
            read: turns a mask that is no tensor into one.
        """
        if self.box is not None:
            inside = torch.zeros(1, 1, *size)
            left, top, right, bottom = (max(edge, 0) for edge in self.box)
            inside[..., top:bottom, left:right] = 1
        elif isinstance(self.mask, Tensor) and self.mask.ndim == 2:
            inside = (self.mask.detach().float().cpu() > 0.5).float()[None, None]
        elif read is not None:
            inside = read(self.mask)
        else:
            raise InvalidInput(f"{type(self.mask).__name__} is no tensor (H, W)", where="region.mask")
        if inside.shape[2:] != size:
            inside = F.interpolate(inside, size, mode="nearest-exact")
        if not bool(inside.any()):
            raise InvalidInput(f"no pixel of a picture of {size[1]} x {size[0]} lies inside", where="region")
        return feathered(inside, self.feather)

    def places(self, size: tuple[int, int], sides: tuple[int, int], read: Read | None = None) -> Tensor:
        """The same of each place of an x of so many rows and columns, by the mean of its pixels."""
        return F.adaptive_avg_pool2d(self.over(size, read), sides)
