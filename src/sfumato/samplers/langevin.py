"""Langevin dynamics: walks along the score at one noise level, annealed from level to level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class Langevin(Sampler):
    """Annealed Langevin dynamics: at every level a few noisy steps up the score, then the next level's.

        x ← x + ε score + sqrt(2 ε) z,   `steps` times at each level

    As ε goes to 0 each level's own distribution is kept, whatever came before: so the same steps correct what
    another sampler did (`predictor_corrector`). Between levels x/alpha stays as it is (from pure noise, where
    it is infinite, x is carried by the estimate), and the last step, to clean data, takes the estimate.

        "level":  ε = 2 (snr · sigma)²             NCSN's: step_lr (sigma_i / sigma_L)² with
                                                   snr = sqrt(step_lr / 2) / sigma_L
        "norms":  ε = 2 (snr · |z| / |score|)²     of each sample

    A finite ε leaves too much noise: of Gaussian data of variance v it makes v / (1 - ε/(2v)), and beyond
    ε = 2v it diverges; so snr is below 1. The published code averages the norms over the batch, which makes
    a picture depend on its company; here every sample has its own. Their quotients differ by a share of about
    1 / sqrt(dimensions), a fiftieth for CIFAR-10, where the pictures differ by .5 % and their variance by
    .01 %; in a few dimensions they differ wildly, and "level" is the rule to take. The code also has a factor
    1 - β_i, nearly 1, on DDPM's betas alone; here ε is the same on every path.

    Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution",
    arXiv:1907.05600, algorithm 1 (its text halves ε, the code of its pictures does not); Song & Ermon 2020,
    "Improved Techniques for Training Score-Based Generative Models", arXiv:2006.09011, algorithm 1; Song et
    al. 2021, arXiv:2011.13456, algorithms 4 and 5 (norms).

    Args:
        snr: r, how large a step is against its noise. NCSN .316, NCSNv2 .176 (CIFAR-10) and .128 (CelebA);
            as a corrector .05 to .2. `processes.ncsn.langevin_snr` computes it for a ladder.
        steps: at each level, each costs an estimate. NCSN 100, NCSNv2 5; as a corrector 1.
        rule: how ε is chosen, see above.

    Raises:
        InvalidInput: an snr that is not positive, or fewer than 1 step.
    """

    snr: float = 0.176
    steps: int = 5
    rule: Literal["level", "norms"] = "level"

    def __post_init__(self) -> None:
        if not 0 < self.snr < math.inf:
            raise InvalidInput(f"{self.snr} is no ratio", where="langevin.snr", do="give .05 to .3")
        if self.steps < 1:
            raise InvalidInput(f"{self.steps} steps a level", where="langevin.steps", do="give at least 1")

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        x = self.correct(reverse, x, t)
        here, there = reverse.level(t), reverse.level(s)
        if here.alpha == 0 or there.sigma == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        return x * (there.alpha / here.alpha), state

    def correct(self, reverse: ReverseProcess, x: Tensor, t: float) -> Tensor:
        """x (B, ..) nearer to the distribution of time t, by `steps` steps there."""
        level = reverse.level(t)
        for turn in range(self.steps):
            score = reverse.score(x, level)
            z = reverse.randn_like(x, t, f"langevin {turn}")
            if self.rule == "level":
                size = 2 * (self.snr * level.sigma) ** 2
                x = torch.add(torch.add(x, score, alpha=size), z, alpha=math.sqrt(2 * size))
            else:
                root = math.sqrt(2) * self.snr * _quotient(z, score)
                x = x + (root**2).to(x.dtype) * score + (math.sqrt(2) * root).to(x.dtype) * z
        return x


def _quotient(z: Tensor, score: Tensor) -> Tensor:
    """|z| / |score| of each sample, (B, 1, .., 1), in float32 or better."""
    norms = [
        torch.linalg.vector_norm(v.flatten(1), dim=1, dtype=torch.promote_types(v.dtype, torch.float32))
        for v in (z, score)
    ]
    # Where the score vanishes there is nothing to measure a step by: none is taken.
    found = torch.where(norms[1] > 0, norms[0] / norms[1], 0.0)
    return found.view(-1, *[1] * (z.ndim - 1))
