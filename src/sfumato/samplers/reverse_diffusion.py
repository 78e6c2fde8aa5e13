"""Reverse diffusion: the reverse-time SDE discretised as the forward chain is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State
from sfumato.samplers.euler_maruyama import renewed


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """Reverse diffusion: undo a link of the forward chain to first order, the predictor of score-based SDEs.

    From s to t the forward chain goes x_t = a x_s + sqrt(β) z; backwards, with the score at t,

        x_s = (2 - a) x + β score + sqrt(β) z,   a = alpha_t / alpha_s,   β = sigma_t² - a² sigma_s²,

    which is the published rule x - f + G² score + G z with f = (a - 1) x and G² = β: on DDPM's betas
    a = sqrt(1 - β), on a noise ladder a = 1 and β is the difference of the variances. In levels it serves
    every process (the authors' code takes Euler's step for sub-VP). Where a = 1 it is `ancestral` with the
    large variance; elsewhere that divides by a, which agrees to first order in β.

    The step to clean data is the estimate itself, without noise. From pure noise, where a = 0, no first order
    in 1 - a helps: x_s is alpha_s x0 + sigma_s z, as it forgets x.

    Song et al. 2021, arXiv:2011.13456, appendix E, equation 46, and algorithms 2 and 3.
    """

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if here.alpha == 0 or there.sigma == 0:
            return renewed(reverse, x, t, s), state
        a = here.alpha / there.alpha
        kept = a * there.sigma
        # (a - b)(a + b), for close levels, where a² - b² would lose digits.
        beta = max((here.sigma - kept) * (here.sigma + kept), 0.0)
        mean = torch.add((2 - a) * x, reverse.score(x, here), alpha=beta)
        return torch.add(mean, reverse.randn_like(x, t), alpha=math.sqrt(beta)), state
