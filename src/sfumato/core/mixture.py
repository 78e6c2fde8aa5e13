"""Gaussian mixtures: data whose denoiser, score and likelihood are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.level import Level
from sfumato.core.noise import Noise


@dataclass(frozen=True)
class GaussianMixture:
    """Data drawn from Σ w_k N(m_k, s_k² I), itself a denoiser: what a perfectly trained network would say.

    At a level, p(x_t) is the mixture of N(alpha m_k, alpha² s_k² + sigma²), and with r_k(x) the posterior
    weights

        E[x0 | x_t] = Σ_k r_k(x_t) (alpha s_k² x_t + sigma² m_k) / (alpha² s_k² + sigma²).

    Every sampler, path and prediction is certified on it.

    Args:
        means: m_k, (K, D).
        stds: s_k, (K,); 0 is a point.
        weights: w_k, (K,), summing to 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    @staticmethod
    def gaussian(mean: float, std: float, dim: int = 1) -> GaussianMixture:
        """One Gaussian N(mean, std² I) in `dim` dimensions."""
        one = torch.ones(1, dtype=torch.float64)
        return GaussianMixture(torch.full((1, dim), mean, dtype=torch.float64), std * one, one)

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition | None = None) -> Denoised:
        """Posterior mean of the data at x (B, D) and a level."""
        means, stds = self.means.to(x), self.stds.to(x)
        alpha, sigma = self._columns(level, x)
        power = (alpha * stds) ** 2 + sigma**2
        each = (alpha * stds**2)[..., None] * x[:, None, :] + (sigma**2)[..., None] * means
        return Denoised((self._posterior(x, level)[..., None] * each / power[..., None]).sum(1))

    def score(self, x: Tensor, level: Level[Any]) -> Tensor:
        """Gradient of log p(x_t), (B, D)."""
        alpha, sigma = self._columns(level, x)
        power = ((alpha * self.stds.to(x)) ** 2 + sigma**2)[..., None]
        return (
            self._posterior(x, level)[..., None]
            * (alpha[..., None] * self.means.to(x) - x[:, None, :])
            / power
        ).sum(1)

    def log_prob(self, x: Tensor, level: Level[Any] | None = None) -> Tensor:
        """log p(x_t), (B,), in nats; of the data themselves without a level."""
        return torch.logsumexp(self._joint(x, level or Level(1.0, 0.0)), dim=1)

    def sample(self, noise: Noise) -> Tensor:
        """Data, (B, D) float64, one row a seed."""
        pick = noise.uniform((len(noise), 1), "mixture component")
        which = (pick > self.weights.cumsum(0)[:-1]).sum(1)
        return self.means[which] + self.stds[which, None] * noise.randn(
            (len(noise), self.means.shape[1]), "mixture"
        )

    def _columns(self, level: Level[Any], x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma as (B or 1, 1)."""
        # The dtype is named, for torch would read a float as float32 first.
        alpha, sigma = (torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in level)
        return alpha.view(-1, 1), sigma.view(-1, 1)

    def _joint(self, x: Tensor, level: Level[Any]) -> Tensor:
        """log w_k + log N(x; k), (B, K)."""
        alpha, sigma = self._columns(level, x)
        power = (alpha * self.stds.to(x)) ** 2 + sigma**2
        square = ((x[:, None, :] - alpha[..., None] * self.means.to(x)) ** 2).sum(-1)
        dim = x.shape[1]
        return self.weights.to(x).log() - square / (2 * power) - dim / 2 * (2 * math.pi * power).log()

    def _posterior(self, x: Tensor, level: Level[Any]) -> Tensor:
        """The posterior weights r_k(x), (B, K)."""
        if len(self.stds) == 1:
            return x.new_ones(len(x), 1)
        return torch.softmax(self._joint(x, level), dim=1)
