"""Variational bounds on the likelihood, of one reverse step and of a random level, in bits a dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoiser
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
    beta, here, there = _step(process, t)
    log_large, log_small = _log_variances(process, t, x0)
    log_variance = fraction * log_large + (1 - fraction) * log_small
    # Differences of squares near 1, taken in float64 whatever the data are.
    pull = (there.alpha * beta / here.sigma**2).to(x0).view(log_small.shape)
    gap = pull * (x0 - mean)
    kl = 0.5 * (
        log_variance - log_small - 1 + torch.exp(log_small - log_variance) + gap**2 * torch.exp(-log_variance)
    )
    first = (t <= 1.5 * one).to(x0.device).view(-1, *[1] * (x0.ndim - 1))
    nats = torch.where(first, _discretised(x0, mean, log_variance), kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_bound(process: Process, x0: Tensor, t: float = 1.0) -> Tensor:
    """KL(q(x_t | x0) ‖ the prior there) in bits a dimension, (B,): what a walk's start does not know.

    Args:
        process: the forward process.
        x0: data (B, C, ..).
        t: where the walk starts.
    """
    level = process(t)
    std = process.prior_std * level.norm / process(1.0).norm
    # ratio - 1 - log(ratio), which is the square of a small number where noise is all there is.
    excess = (level.sigma / std) ** 2 - 1
    fixed = (excess - math.log1p(excess)) / 2
    return (fixed + (level.alpha / std) ** 2 / 2 * (x0**2).flatten(1).mean(1)) / math.log(2)


def likelihood_weight(process: Process, t: Tensor) -> Tensor:
    """-½ dSNR/dt at times t (B,): what the squared error of x0 costs in nats a unit of time.

    SNR = alpha²/sigma². In Song et al. it is g² on the squared error of the score: g² alpha² / (2 sigma⁴).

    Kingma, Salimans, Poole & Ho 2021, "Variational Diffusion Models", arXiv:2107.00630, equation 17; Song,
    Durkan, Murray & Ermon 2021, arXiv:2101.09258, theorem 1.
    """
    level, rates = process.level(t), process.rates(t)
    return level.alpha * (level.alpha * rates.sigma / level.sigma - rates.alpha) / level.sigma**2


def density_bound(
    denoiser: Denoiser,
    process: Process,
    x0: Tensor,
    condition: Condition,
    t: Tensor,
    weight: Tensor,
    eps: Tensor,
) -> Tensor:
    """An unbiased draw of an upper bound on -log p(x0) in bits a dimension, for the continuous-time model.

        -log p(x0) <= KL(q(x_1 | x0) ‖ prior) + ∫ -½ SNR'(t) E|x0 - x0_hat(x_t)|² dt + ½ log(2πe ς²)

    over t from t_min to 1. The last term is the decoder N(x0; x_t / alpha, ς²) at t_min, ς = sigma / alpha
    there, which knows nothing of the data. Differentiable in x0.

    Kingma et al. 2021, arXiv:2107.00630, equations 11 to 17.

    Args:
        denoiser: the model.
        process: of the walk.
        x0: data of any density (B, C, ..); bytes are dequantised first.
        condition: what the denoiser is told.
        t: times (B,), drawn from a law of training levels.
        weight: the law's weights (B,): the uniform density on [t_min, 1] over the density drawn from.
        eps: noise shaped as x0.

    Returns:
        Bits a dimension, (B,); the mean over t and eps is the bound.
    """
    at = process(t).like(x0)
    guess = denoiser(at.alpha * x0 + at.sigma * eps, at, condition).x0
    error = ((guess - x0) ** 2).flatten(1).mean(1)
    rate = (1 - process.t_min) * weight * likelihood_weight(process, t)
    decoder = math.log(2 * math.pi * math.e) / 2 + math.log(process(process.t_min).ratio)
    # Where the data vanish, a law of levels ends one index before: so does the walk whose prior is meant.
    start = process.time(process.log_snr_range()[0])
    return (rate.to(error) * error + decoder) / math.log(2) + prior_bound(process, x0, start)


def _log_variances(process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """log β and log β̃ of the reverse step from t; β̃ of the first index is that of the second, not 0."""
    large, _, _ = _step(process, t)
    second, here, there = _step(process, t.clamp_min(2 / process.steps))
    small = second * (there.sigma / here.sigma) ** 2
    shape = (-1, *[1] * (like.ndim - 1))
    return large.log().to(like).view(shape), small.log().to(like).view(shape)


def _step(process: Process, t: Tensor) -> tuple[Tensor, Level[Tensor], Level[Tensor]]:
    """β of the step to t, float64, with the levels at t and one index below."""
    here, there = process(t), process((t - 1 / process.steps).clamp_min(0))
    return here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2, here, there


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
