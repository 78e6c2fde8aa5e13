"""DDPM's ancestral sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, reverse_std


@dataclass(frozen=True)
class Ancestral(Sampler):
    """DDPM: draw x_s from a Gaussian around the posterior mean, one link of the Markov chain after another.

        mean = (alpha_ts sigma_s² x + alpha_s β x0) / sigma_t²,   alpha_ts = alpha_t / alpha_s
        β = sigma_t² - alpha_ts² sigma_s²   (large),   β̃ = β sigma_s² / sigma_t²   (small)

    The last step, to clean data, adds no noise.

    Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239, algorithm 2;
    "learned": log Σ = v log β + (1 - v) log β̃ with v from the network, Nichol & Dhariwal 2021,
    arXiv:2102.09672, equation 15.

    Args:
        variance: "small" (exact for data at a point), "large" (exact for unit Gaussian data) or "learned".
    """

    variance: Literal["small", "large", "learned"] = "small"

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        denoised = reverse.denoise(x, here)
        ratio = here.alpha / there.alpha
        beta = here.sigma**2 - (ratio * there.sigma) ** 2
        mean = (ratio * there.sigma**2 * x + there.alpha * beta * denoised.x0) / here.sigma**2
        if there.sigma == 0:
            return mean, state
        std: float | Tensor = reverse_std(here, there)
        if self.variance == "large":
            std = math.sqrt(beta)
        elif self.variance == "learned":
            if denoised.variance is None:
                raise InvalidInput(
                    "the model says no variance", where="ancestral.variance", do="use small or large"
                )
            small = reverse_std(here, there)
            std = torch.exp(denoised.variance * (math.log(beta) / 2 - math.log(small)) + math.log(small))
        return mean + std * reverse.randn_like(x, t), state
