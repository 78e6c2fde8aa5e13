"""Normals: which way surfaces face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.reading import map_of
from sfumato.core.detector import Detector
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Normals:
    """Normals of the surface that a map of depth tells, by finite differences.

        n = (r ∂d/∂u, r ∂d/∂v, 1) / ‖·‖

    with d the depth spread over [0, 1], near high, as estimators tell it up to scale and shift; u to the
    right and v downward in shorter sides of the picture. So red is what faces left, green what faces up and
    blue what faces the viewer. Differences are Sobel's, smoothed across by (1, 2, 1) / 4, and go on linearly
    beyond the edge.

    As ControlNet 1.0 took normals from MiDaS' depth (arXiv:2302.05543); its a = 2π comes to a relief of 4
    where depths range over 1600 at 512 pixels.

    Args:
        relief: r, how strongly depth counts.
        background: what is farther than this share of the range faces the viewer.
        depth: a detector that tells the depth of pictures; None, depth itself is given.

    Raises:
        InvalidInput: a relief or a share that is none; of a map, sides below 2.
    """

    relief: float = 4.0
    background: float = 0.1
    depth: Detector | None = None

    def __post_init__(self) -> None:
        if not self.relief > 0 or not 0 <= self.background < 1:
            raise InvalidInput("a relief above 0 and a share below 1 are wanted", where="normals")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """Depths (H, W) or (1, H, W) of any unit, near high, or a PNG of them → (3, H, W) in [-1, 1]."""
        told = given if self.depth is None else self.depth(given, seed)
        found = map_of(told, "normals", classes=False).double()
        if min(found.shape) < 2:
            raise InvalidInput(f"a map of {found.shape[1]} x {found.shape[0]} has no slopes", where="normals")
        low, high = found.min(), found.max()
        d = (found - low) / (high - low) if high > low else torch.zeros_like(found)
        wide = _continued(_continued(d, 0), 1)
        across, along = torch.tensor([1, 2, 1.0]).double() / 4, torch.tensor([-1, 0, 1.0]).double() / 2
        kernels = torch.stack((across[:, None] * along, along[:, None] * across))[:, None]
        slopes = F.conv2d(wide[None, None], kernels)[0] * min(found.shape) * self.relief
        slopes = slopes * (d >= self.background)
        return F.normalize(torch.cat((slopes, torch.ones_like(d)[None])), dim=0).float()


def _continued(d: Tensor, side: int) -> Tensor:
    """With one more row, or column, at either end, on the line of the last two."""
    first, second, before, last = (d.select(side, place).unsqueeze(side) for place in (0, 1, -2, -1))
    return torch.cat((2 * first - second, d, 2 * last - before), dim=side)
