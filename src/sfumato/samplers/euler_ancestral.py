"""Euler's method with ancestral noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move, reverse_std


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """Euler's method down past the next level, then noise back up to it ("Euler a").

        up = η sqrt(β̃),   down = sqrt(sigma_s² - up²)

    At noise_scale 1 the same numbers as DDIM with this η; noise_scale leaves the deterministic part alone and
    scales the fresh noise, which DDIM cannot.

    Crowson 2022, k-diffusion; the split is DDPM's (arXiv:2006.11239).

    Args:
        eta: how much of the reverse noise is fresh, 0 to 1.
        noise_scale: factor on the fresh noise; a little above 1 adds texture.
    """

    eta: float = 1.0
    noise_scale: float = 1.0

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        x0 = reverse.denoise(x, here).x0
        if there.sigma == 0:
            return move(x, x0, here, there), state
        up = self.eta * reverse_std(here, there)
        return move(x, x0, here, there, up) + self.noise_scale * up * reverse.randn_like(x, t), state
