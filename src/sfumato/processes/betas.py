"""Discrete betas: DDPM, improved DDPM, latent diffusion and Stable Diffusion."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.process import Process

_MOST_STEPS = 100_000


@dataclass(frozen=True)
class Betas(Process):
    """A Markov chain of T noising steps: alpha_k² = Π_{j≤k} (1 - β_j), sigma² = 1 - alpha², k = 0 .. T-1.

    Index k sits at t = (k + 1) / T; index 0 is already one noising step. Between indices log-SNR is
    interpolated linearly; from index 0 to clean data the noise variance is.

    Schedules: "linear" (Ho, Jain & Abbeel 2020, arXiv:2006.11239: 1e-4 to .02, scaled by 1000/T),
    "scaled_linear"
    (linear in sqrt(β); Rombach et al. 2022, arXiv:2112.10752: .00085 to .012 for Stable Diffusion), "cosine"
    (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 17).

    Args:
        schedule: which rule, unless `values` are given.
        steps: T.
        start: β_0 of the linear rules; None means the published one.
        end: β_{T-1} likewise.
        zero_terminal_snr: shift and scale alpha so that index T-1 holds no data (Lin, Liu, Li & Yang 2024,
            arXiv:2305.08891, algorithm 1); noise and score predictions say nothing there.
        values: the betas themselves, T of them.
    """

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 1000
    start: float | None = None
    end: float | None = None
    zero_terminal_snr: bool = False
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.values is not None and len(self.values) != self.steps:
            object.__setattr__(self, "steps", len(self.values))
        if not 2 <= self.steps <= _MOST_STEPS:
            few = "few" if self.steps < 2 else "many"
            raise InvalidInput(
                f"{self.steps} steps are too {few}", where="betas.steps", do=f"give 2 to {_MOST_STEPS:,}"
            )
        if not bool(((self.betas > 0) & (self.betas <= 1)).all()):
            raise InvalidInput("every beta must be above 0 and at most 1", where="betas")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @functools.cached_property
    @torch.inference_mode(False)
    def betas(self) -> Tensor:
        """β_k, (T,) float64."""
        if self.values is not None:
            return torch.tensor(self.values, dtype=torch.float64, device="cpu")
        if self.schedule == "cosine":
            u = torch.arange(self.steps + 1, dtype=torch.float64, device="cpu") / self.steps
            f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - f[1:] / f[:-1]).clamp(0, 0.999)
        elif self.schedule == "linear":
            scale = 1000 / self.steps
            ends = (
                scale * 1e-4 if self.start is None else self.start,
                scale * 0.02 if self.end is None else self.end,
            )
            betas = torch.linspace(*ends, self.steps, dtype=torch.float64, device="cpu")
        else:
            ends = (0.00085 if self.start is None else self.start, 0.012 if self.end is None else self.end)
            roots = (ends[0] ** 0.5, ends[1] ** 0.5)
            betas = torch.linspace(*roots, self.steps, dtype=torch.float64, device="cpu") ** 2
        if self.zero_terminal_snr:
            alpha = torch.cumprod(1 - betas, 0).sqrt()
            power = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
            betas = 1 - power / torch.cat((torch.ones(1, dtype=torch.float64, device="cpu"), power[:-1]))
        return betas

    @functools.cached_property
    @torch.inference_mode(False)
    def alphas_cumprod(self) -> Tensor:
        """alpha_k², (T,) float64: the ᾱ of DDPM."""
        return torch.cumprod(1 - self.betas, 0)

    @functools.cached_property
    @torch.inference_mode(False)
    def table(self) -> Tensor:
        """log(alpha/sigma) by index, (T,), decreasing; the last may be -inf."""
        power = self.alphas_cumprod
        return (power.log() - torch.log1p(-power)) / 2

    def level(self, t: Tensor) -> Level[Tensor]:
        position = t * self.steps - 1
        below = position.detach().floor().clamp(0, self.steps - 2).long()
        table = self.table.to(t.device)
        here, there, part = table[below], table[below + 1], position - below
        last = there == -math.inf
        log_snr = here + part * (torch.where(last, here, there) - here)
        alpha = torch.sigmoid(2 * log_snr).sqrt()
        # Towards a vanished signal log-SNR has no line to follow: alpha goes to 0 evenly instead.
        alpha = torch.where(last, (1 - part) * torch.sigmoid(2 * here).sqrt(), alpha)
        sigma = torch.where(last, (1 - alpha**2).sqrt(), torch.sigmoid(-2 * log_snr).sqrt())
        first = (t * self.steps * self.betas[0].to(t.device)).clamp(1e-300, 1)
        early = position < 0
        return Level(torch.where(early, (1 - first).sqrt(), alpha), torch.where(early, first.sqrt(), sigma))

    def invert(self, log_snr: Tensor) -> Tensor:
        table = self.table.to(log_snr.device)
        rising = -table
        above = torch.searchsorted(rising, -log_snr).clamp(1, self.steps - 1)
        here, there = table[above - 1], table[above]
        last = there == -math.inf
        part = (log_snr - here) / (torch.where(last, here - 1, there) - here)
        ends = torch.sigmoid(2 * log_snr).sqrt() / torch.sigmoid(2 * here).sqrt()
        part = torch.where(last, 1 - ends, part).clamp(0, 1)
        early = torch.sigmoid(-2 * log_snr) / self.betas[0].to(log_snr.device) / self.steps
        return torch.where(log_snr > table[0], early, (above + part) / self.steps)
