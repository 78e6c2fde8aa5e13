"""Euler-Maruyama: the reverse-time SDE in even-handed steps of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """Euler's method on the reverse-time SDE, the most literal way to sample a score-based model.

        x_s = x + (s - t) (f x - g² score) + g sqrt(t - s) z,   f and g at time t

    Of weak order 1, for every process; being a step in t, it is another step on another path. The step to
    clean data is the estimate itself, without noise. From pure noise, where alpha = 0, f and g are infinite:
    they mix x so fast that x_s forgets x, as the exact x_s given x does, for x says nothing of the data. That
    step is the limit, alpha_s x0 + sigma_s z.

    Stiff where the noise falls by much in a step (the processes with alpha = 1 on few steps): there
    `reverse_diffusion` and `ancestral`, which step between levels, are steadier.

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, "Score-Based Generative Modeling through
    Stochastic Differential Equations", arXiv:2011.13456, equation 6 and appendix E. (The authors' code steps
    by 1/N on a grid whose N times lie (1 - t_min)/(N - 1) apart; here a step is as long as the grid says.)
    """

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        if reverse.level(t).alpha == 0 or s <= 0:
            return renewed(reverse, x, t, s), state
        f, g = reverse.process.sde(t)
        mean = torch.add(x * (1 + (s - t) * f), reverse.score(x, t), alpha=(t - s) * g**2)
        return torch.add(mean, reverse.randn_like(x, t), alpha=g * math.sqrt(t - s)), state


def renewed(reverse: ReverseProcess, x: Tensor, t: float, s: float) -> Tensor:
    """The estimate at x under fresh noise of time s: a step from pure noise, or to clean data."""
    there = reverse.level(s)
    x0 = reverse.denoise(x, t).x0
    if there.sigma == 0:
        return x0
    return torch.add(there.alpha * x0, reverse.randn_like(x, t), alpha=there.sigma)
