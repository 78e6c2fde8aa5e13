"""Inpaint: a part of a picture made anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.conditioners.beside import fitted
from sfumato.core.edit import Canvas, feathered
from sfumato.core.errors import InvalidInput
from sfumato.core.region import Region
from sfumato.data.picture import masks, pictures


@dataclass(frozen=True)
class Inpaint:
    """Make a masked part of a picture anew; every pixel outside the mask comes out as it went in.

    A model told nothing of the hole is held to the rest at every step (replacement: Lugmayr et al. 2022,
    arXiv:2201.09865, section 3.2; the sampler `repaint` harmonises better for more steps); one that is told
    the picture and the mask by inputs of its own (`image`, `mask`: Stable Diffusion's inpainting models) is
    given them.

    Args:
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list with one for each picture made.
        mask: likewise, in grey; white (above half) where the picture is made anew. It is of the picture's
            shape; one of another size is resized.
        strength: the part of the walk that is walked: at 1 what the hole held is forgotten.
        feather: width in pixels, inside the mask, of the band where new and old are mixed.
        region: in the place of a mask and its feather, where the picture is made anew.

    Raises:
        InvalidInput: a mask and a region, or a feather that is none; else as pictures are read.
    """

    image: Any = None
    mask: Any = None
    strength: float = 1.0
    feather: int = 0
    region: Region | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.feather <= 256:
            raise InvalidInput(f"{self.feather} is not from 0 to 256 pixels", where="inpaint.feather")
        if self.region is not None and (self.mask is not None or self.feather):
            raise InvalidInput("give a mask and a feather, or a region", where="inpaint.region")

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The picture, of which the mask may change."""
        image = pictures(self.image, channels, "image", size)
        sides = (image.shape[2], image.shape[3])
        if self.region is not None:
            inside = self.region.over(sides, lambda given: masks(given, "region.mask", size))
            return Canvas(image, inside, self.strength)
        change = fitted(masks(self.mask, "mask", size), sides, "nearest", "mask", what="mask")
        if not bool(change.any()):
            raise InvalidInput("nothing in it is white: there is nothing to make anew", where="mask")
        return Canvas(image, feathered(change, self.feather), self.strength)
