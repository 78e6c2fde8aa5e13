"""Soft truncation of the cleanest levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, unit
from sfumato.training.levels.likelihood import by_log_snr


@dataclass(frozen=True)
class SoftTruncation(LevelLaw):
    """A random smallest time: τ with density ∝ τ^-k on [t_min, 1], then t above it alone.

    The loss of the levels above τ is a bound too, on the likelihood of data noised to τ; with the weight
    `likelihood` this is maximum likelihood at all of those precisions together. The importance weight is
    (1 - τ) / (1 - t_min) for uniform times, so that

        E[weight · f(t)] = E_uniform[F(t) f(t)],   F(t) = P(τ <= t) = log(t / t_min) / log(1 / t_min) at k = 1

    (t^(1-k) in place of log t otherwise). What it buys is attention to the large levels, at the price of
    another loss. Where the bound is even in log t, as for points where sigma = t, levels above t_min^a hold
    the part a of it and are, by importance, the part a of all draws. Soft truncation at k = 1 makes that
    1 - (1 - a)² of the loss and a (1 - log a) of the draws: .51 and .66 where a is .3. There, without
    `importance`, a row's loss still varies as 1/t does: its second moment falls by a factor of about
    log(1 / t_min) alone, its mean by 2.

    The paper draws one τ a batch; here every row draws its own, which leaves each row's law and so the
    expectation of the loss as it is, and keeps rows independent of their batch.

    Kim, Shin, Song, Kang & Moon 2022, "Soft Truncation: A Universal Training Technique of Score-based
    Diffusion Model for High Precision Score Estimation", arXiv:2106.05527, sections 4.1 and 4.3.

    Args:
        k: the power; the larger, the nearer to no truncation at all.
        importance: draw t above τ as the levels `likelihood` do, weighted back to uniform times.
        stratified: one draw of t's place in each of B even parts.
    """

    k: float = 1.0
    importance: bool = False
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.k <= 20:
            raise InvalidInput(f"{self.k} is no power here", where="soft_truncation.k", do="give 0 to 20")

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        start = self.smallest(process, noise.uniform((count, 1), "truncation")[:, 0])
        u = unit(count, noise, self.stratified)
        if self.importance:
            return by_log_snr(process, u, start)
        return Levels(start + (1 - start) * u, (1 - start) / (1 - process.t_min))

    def smallest(self, process: Process, u: Tensor) -> Tensor:
        """τ at a probability u of (0, 1), by the inverse distribution function."""
        least, power = process.t_min, 1 - self.k
        if abs(power) < 1e-6:
            return torch.exp((1 - u) * torch.log(torch.as_tensor(least, dtype=u.dtype)))
        edge = least**power
        return (edge + u * (1 - edge)) ** (1 / power)
