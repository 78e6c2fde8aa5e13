"""Canny: thin edges where colours change sharply."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.control.detectors.reading import colors, levels, opencv
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Canny:
    """Canny's edges: the ridges of the gradient, one pixel wide, white on black.

    A pixel is an edge where the gradient, the largest of the three colours', is above the high threshold, or
    above the low one and joined to such a pixel by others of its kind. The gradient is the sum of both
    directions' absolute Sobel sums of bytes: a step by v levels counts 4 v.

    Canny 1986, "A Computational Approach to Edge Detection", IEEE TPAMI 8(6); thresholds as ControlNet's
    (Zhang, Rao & Agrawala 2023, arXiv:2302.05543), which drew them at random in training.

    Args:
        low, high: the thresholds.
        spread: with a seed each threshold is multiplied by a factor of its own, drawn log-evenly from
            1 / spread to spread; 1 leaves them.

    Raises:
        InvalidInput: thresholds that are not 0 <= low <= high, or a spread below 1.
        MissingExtra: OpenCV is not installed.
    """

    low: float = 100.0
    high: float = 200.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InvalidInput(f"{self.low} and {self.high} are not 0 <= low <= high", where="canny")
        if not self.spread >= 1:
            raise InvalidInput(f"{self.spread} is below 1", where="canny.spread")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) of -1 and 1."""
        array = levels(colors(given, "canny"))
        edges = opencv().Canny(array, *self.thresholds(seed))
        return torch.from_numpy(edges)[None] / 127.5 - 1

    def thresholds(self, seed: str | None = None) -> tuple[float, float]:
        """Low and high under a seed."""
        if seed is None:
            return self.low, self.high
        chance = random.Random(f"canny:{seed}")
        low, high = (value * self.spread ** (2 * chance.random() - 1) for value in (self.low, self.high))
        return min(low, high), max(low, high)
