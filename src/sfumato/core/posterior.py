"""Posterior: what an encoder says of a picture, a Gaussian over latents or a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.noise import Noise

LOWEST, HIGHEST = -30.0, 20.0
"""Bounds of the log-variance."""


@dataclass(frozen=True)
class Posterior:
    """N(mean, diag exp(log_variance)) over latents; without a log-variance, the mean alone.

        z = mean + exp(log_variance / 2) · n,    KL(z ‖ N(0, I)) = ½ Σ (mean² + variance - 1 - log_variance)

    Kingma & Welling 2013, "Auto-Encoding Variational Bayes", arXiv:1312.6114, appendix B; bounds of Rombach
    et al. 2022, arXiv:2112.10752.

    Args:
        mean: (B, C, h, w), which is also the mode.
        log_variance: of its shape, clamped to [-30, 20] here; None where the encoder is deterministic.
    """

    mean: Tensor
    log_variance: Tensor | None = None

    def __post_init__(self) -> None:
        if self.log_variance is not None:
            object.__setattr__(self, "log_variance", self.log_variance.clamp(LOWEST, HIGHEST))

    @staticmethod
    def of(moments: Tensor) -> Posterior:
        """From (B, 2C, h, w), means before log-variances."""
        return Posterior(*moments.chunk(2, dim=1))

    @property
    def std(self) -> Tensor:
        """Standard deviations, zeros where nothing is random."""
        if self.log_variance is None:
            return torch.zeros_like(self.mean)
        return torch.exp(0.5 * self.log_variance)

    def sample(self, noise: Noise) -> Tensor:
        """A draw for every row, differentiable in the moments."""
        if self.log_variance is None:
            return self.mean
        return self.mean + self.std * noise.randn_like(self.mean, "posterior")

    def kl(self) -> Tensor:
        """KL divergence (B,) from the standard normal in nats, summed over channels and places.

        0 where nothing is random, as such encoders are held by other means.
        """
        if self.log_variance is None:
            return self.mean.new_zeros(len(self.mean))
        terms = self.mean**2 + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)
