"""Palette: which colours stand where, without any form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.reading import colors
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Palette:
    """A coarse grid of colours: the mean of each cell, enlarged again without smoothing.

    Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig Out More Controllable Ability for Text-to-Image
    Diffusion Models", arXiv:2302.08453: 64 times smaller at 512 pixels.

    Args:
        cells: along the shorter side; along the longer one as many as keep them nearest to squares.

    Raises:
        InvalidInput: no cells; of a picture, with fewer pixels than cells.
    """

    cells: int = 8

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise InvalidInput(f"{self.cells} cells are none", where="palette.cells")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (3, H, W) in [-1, 1]."""
        picture = colors(given, "palette")
        height, width = picture.shape[1:]
        if min(height, width) < self.cells:
            raise InvalidInput(
                f"{width} x {height} pixels make no {self.cells} cells along a side",
                where="palette.cells",
            )
        side = min(height, width) / self.cells
        grid = (round(height / side), round(width / side))
        return F.interpolate(F.adaptive_avg_pool2d(picture[None], grid), (height, width), mode="nearest")[0]
