"""Detector: the contract of what makes a hint of a picture, or of what is known of it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Detector(Protocol):
    """Sees something in a picture and draws it: edges, lines, key points, depth, ..., as a control is told.

    The hint is a picture itself, so that it can be looked at, saved, drawn by hand instead and told to the
    conditioner `hints`.
    """

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W) in [-1, 1] → its hint (1 or 3, H, W) in [-1, 1].

        Args:
            given: the picture, or a path or PIL image of one; some detectors read masks, maps or coordinates
                instead and say so.
            seed: decides what the settings leave to chance, for training; None leaves nothing to chance.
        """
        ...
