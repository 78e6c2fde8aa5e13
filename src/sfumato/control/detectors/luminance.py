"""Luminance: how light a picture is, without its colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.control.detectors.reading import colors
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Luminance:
    """The lightness of each pixel, a weighted mean of its colours: the picture in grey.

        y = w_r · r + w_g · g + w_b · b

    Args:
        weights: of red, green and blue, which sum to 1; those of ITU-R BT.601 by default, as programs make
            pictures grey by.

    Raises:
        InvalidInput: weights below 0, or of another sum.
    """

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise InvalidInput(f"{self.weights} do not sum to 1", where="luminance.weights")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) in [-1, 1]."""
        weights = torch.tensor(self.weights).view(3, 1, 1)
        return (weights * colors(given, "luminance")).sum(0, keepdim=True)
