"""The variational bound of one step, which trains a learned reverse variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.process import Process


def step_bound(process: Process, t: Tensor, x0: Tensor, mean: Tensor, fraction: Tensor) -> Tensor:
    """One term of the bound in bits a dimension: KL(q(x_s | x_t, x0) ‖ p(x_s | x_t)) / ln 2, s = t - 1/steps.

    log Σ = v log β + (1 - v) log β̃. At the first index (s = 0) it is the negative log-likelihood of 8-bit
    data under a Gaussian discretised to them.

    Nichol & Dhariwal 2021, arXiv:2102.09672, equations 4-6 and 15.

    Args:
        process: the forward process.
        t: times (B,), each an index's: (k + 1) / steps.
        x0: data (B, C, ..) in [-1, 1].
        mean: the estimate of x0; give it detached to train the variance alone.
        fraction: v, shaped as x0.

    Returns:
        Bits a dimension, (B,).
    """
    one = 1 / process.steps
    here, there = process(t).like(x0), process((t - one).clamp_min(0)).like(x0)
    log_large, log_small = _log_variances(process, t, x0)
    log_variance = fraction * log_large + (1 - fraction) * log_small
    beta = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
    gap = there.alpha * beta / here.sigma**2 * (x0 - mean)
    kl = 0.5 * (
        log_variance - log_small - 1 + torch.exp(log_small - log_variance) + gap**2 * torch.exp(-log_variance)
    )
    first = (t <= 1.5 * one).to(x0.device).view(-1, *[1] * (x0.ndim - 1))
    nats = torch.where(first, _discretised(x0, mean, log_variance), kl)
    return nats.flatten(1).mean(1) / math.log(2)


def _log_variances(process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """log β and log β̃ of the reverse step from t; β̃ of the first index is that of the second, not 0."""
    one = 1 / process.steps

    def beta(t: Tensor) -> tuple[Tensor, Level[Tensor], Level[Tensor]]:
        here, there = process(t), process((t - one).clamp_min(0))
        return here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2, here, there

    large, _, _ = beta(t)
    second, here, there = beta(t.clamp_min(2 * one))
    small = second * (there.sigma / here.sigma) ** 2
    shape = (-1, *[1] * (like.ndim - 1))
    return large.log().to(like).view(shape), small.log().to(like).view(shape)


def _discretised(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability of an 8-bit value under a Gaussian; the outermost bins reach to infinity."""
    inverse = torch.exp(-log_variance / 2)

    def distribution(z: Tensor) -> Tensor:
        # The tanh form of the published models; weights trained with it are compared with it.
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = distribution((x - mean + 1 / 255) * inverse)
    lower = distribution((x - mean - 1 / 255) * inverse)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -probability.clamp_min(1e-12).log()
