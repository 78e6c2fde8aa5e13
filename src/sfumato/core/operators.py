"""Measurement operators: from a picture to what was measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InvalidInput

Operator = Callable[[Tensor], Tensor]
"""x (B, C, ..) → measurements (B, ..), row by row, differentiable. Those of this file are linear; what their
transpose does is found by differentiating them."""


@dataclass(frozen=True)
class Mask:
    """The part of a picture that was kept; the rest measures 0.

    Args:
        keep: (top, left, bottom, right) of a rectangle as parts of height and width, 0 to 1: (0, 0, 1, .5) is
            the left half; or a tensor that broadcasts against x, 1 where kept and 0 elsewhere.
    """

    keep: tuple[float, float, float, float] | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.keep, Tensor):
            return
        if len(self.keep) != 4 or not all(0 <= edge <= 1 for edge in self.keep):
            raise InvalidInput("a rectangle is (top, left, bottom, right), each 0 to 1", where="mask.keep")
        top, left, bottom, right = self.keep
        if not (top < bottom and left < right):
            raise InvalidInput("an empty rectangle keeps nothing", where="mask.keep")

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → the same shape."""
        if isinstance(self.keep, Tensor):
            return x * self.keep.to(x)
        _check(x, "mask")
        top, left, bottom, right = self.keep
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
        down = (rows >= round(top * len(rows))) & (rows < round(bottom * len(rows)))
        across = (columns >= round(left * len(columns))) & (columns < round(right * len(columns)))
        return x * (down[:, None] & across).to(x)


@dataclass(frozen=True)
class Downsample:
    """A smaller picture: each of its pixels is the mean of a square.

    Args:
        factor: side of the square.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise InvalidInput(f"{self.factor} is not at least 1", where="downsample.factor")

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → (B, C, H / factor, W / factor)."""
        _check(x, "downsample")
        if any(side % self.factor for side in x.shape[-2:]):
            raise InvalidInput(
                f"{x.shape[-1]} x {x.shape[-2]} does not divide by {self.factor}", where="downsample.factor"
            )
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Blur:
    """A picture seen out of focus: a Gaussian blur, whose weights sum to 1 at the borders too.

    Args:
        sigma: of the Gaussian, in pixels.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise InvalidInput(f"{self.sigma} is not above 0", where="blur.sigma")

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → the same shape."""
        _check(x, "blur")
        down, across = (self._weights(side, x) for side in x.shape[-2:])
        return down @ x @ across.T

    def _weights(self, side: int, x: Tensor) -> Tensor:
        """(side, side): row i is the weights of what place i sees."""
        place = torch.arange(side, dtype=x.dtype, device=x.device)
        return torch.softmax(-((place[:, None] - place) ** 2) / (2 * self.sigma**2), dim=1)


@dataclass(frozen=True)
class Grey:
    """A picture without its colours.

    Args:
        weights: of red, green and blue; the luma of ITU-R BT.601.
    """

    weights: tuple[float, float, float] = (0.299, 0.587, 0.114)

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) → (B, 1, H, W)."""
        _check(x, "grey")
        if x.shape[1] != 3:
            raise InvalidInput(f"{x.shape[1]} channels are not red, green and blue", where="grey")
        red, green, blue = self.weights
        return red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]


def _check(x: Tensor, where: str) -> None:
    if x.ndim != 4:
        raise InvalidInput(f"pictures are (B, C, H, W), not {tuple(x.shape)}", where=where)
