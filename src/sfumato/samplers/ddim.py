"""DDIM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move, reverse_std


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models: to the data as estimated, and back to the next level.

        x_s = alpha_s x0 + sqrt(sigma_s² - η² β̃) eps + η sqrt(β̃) z

    η = 0 is deterministic (Euler's method in sigma/alpha, first order of DPM-Solver++); η = 1 is DDPM's
    ancestral sampler with the smaller variance.

    Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", arXiv:2010.02502, equations 12 and 16.

    Args:
        eta: how much of the reverse noise is fresh, 0 to 1.
    """

    eta: float = 0.0

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        x0 = reverse.denoise(x, here).x0
        if self.eta == 0 or there.sigma == 0:
            return move(x, x0, here, there), state
        std = self.eta * reverse_std(here, there)
        return move(x, x0, here, there, std) + std * reverse.randn_like(x, t), state
