"""Level: how much data and how much noise, the only thing a denoiser knows of time."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Scalar = TypeVar("Scalar", float, Tensor)


class Level(NamedTuple, Generic[Scalar]):
    """A noise level: x_t = alpha · x0 + sigma · eps.

    While sampling both are Python floats (float64, no device, so that `bf16 · float` stays bf16 and nothing
    ever waits for a GPU); while training they are tensors (B, 1, .., 1), one level a row.

    Args:
        alpha: scale of the data.
        sigma: standard deviation of the noise.
    """

    alpha: Scalar
    sigma: Scalar

    @property
    def log_snr(self) -> Scalar:
        """log(alpha / sigma): half the log of the signal-to-noise ratio; ±inf at the ends."""
        if isinstance(self.alpha, Tensor):
            return torch.log(self.alpha) - torch.log(self.sigma)
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def norm(self) -> Scalar:
        """sqrt(alpha² + sigma²): the scale of x_t for data of unit variance."""
        if isinstance(self.alpha, Tensor):
            return torch.hypot(self.alpha, self.sigma)
        return math.hypot(self.alpha, self.sigma)

    @property
    def ratio(self) -> Scalar:
        """sigma / alpha: the noise level of Karras et al. 2022 ("sigma" there); inf where alpha is 0."""
        if isinstance(self.alpha, Tensor):
            return self.sigma / self.alpha
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    def like(self, x: Tensor) -> Level[Tensor]:  # type: ignore[misc]
        """Tensors (B, 1, .., 1) in x's dtype and on its device, from levels given as (B,)."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = torch.as_tensor(self.alpha), torch.as_tensor(self.sigma)
        return Level(alpha.to(x).view(shape), sigma.to(x).view(shape))
