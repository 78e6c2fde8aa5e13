"""Image to image: a picture made over, more or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.core.edit import Canvas
from sfumato.data.picture import pictures


@dataclass(frozen=True)
class ImageToImage:
    """SDEdit: put a picture under as much noise as is to be made over, and walk from there.

    Little strength keeps the picture and touches up detail; at .5 to .8 shapes and colours stay, what they
    show follows what the model is told; at 1 next to nothing stays.

    Meng, He, Song, Song, Wu, Zhu & Ermon 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic
    Differential Equations", arXiv:2108.01073.

    Args:
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list with one for each picture made.
        strength: the part of the walk that is walked, above 0 to 1.
    """

    image: Any = None
    strength: float = 0.6

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The picture, all of which may change."""
        return Canvas(pictures(self.image, channels, "image", size), None, self.strength)
