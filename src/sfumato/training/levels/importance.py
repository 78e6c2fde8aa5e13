"""Importance sampling of noise levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.training.levels.law import LevelLaw, Levels, unit


@dataclass(eq=False)
class Importance(LevelLaw):
    """Levels by how large the loss is there: p ∝ sqrt(mean of the last losses squared), weight target / p.

    Time is cut into bins, each remembering its last losses. Until every bin has its fill, levels are uniform;
    a small uniform share stays for ever, so that no weight grows beyond bound. With as many bins as the
    process has indices and `discrete`, this is the resampler of improved DDPM.

    Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3.

    Args:
        bins: how many parts [t_min, 1] is cut into.
        memory: losses remembered a bin.
        uniform: the share drawn uniformly.
        discrete: draw indices of a discrete model, t = (k + 1) / steps, instead of any time.
    """

    bins: int = 100
    memory: int = 10
    uniform: float = 0.001
    discrete: bool = False

    def __post_init__(self) -> None:
        if self.bins < 2 or self.memory < 1 or not 0 < self.uniform <= 1:
            raise InvalidInput("bins >= 2, memory >= 1 and 0 < uniform <= 1 are needed", where="importance")
        self._losses = torch.zeros(self.bins, self.memory, dtype=torch.float64)
        self._counts = torch.zeros(self.bins, dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin, (bins,) float64."""
        even = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if bool((self._counts < self.memory).any()):
            return even
        moments = (self._losses**2).mean(1).sqrt()
        if not bool(moments.sum() > 0):
            return even
        return (1 - self.uniform) * moments / moments.sum() + self.uniform * even

    def __call__(self, process: Process, count: int, noise: Noise) -> Levels:
        p = self.probabilities
        u = unit(count, noise, False).cpu()
        edges = p.cumsum(0)
        which = torch.searchsorted(edges, u * edges[-1], right=True).clamp_max(self.bins - 1)
        inside = noise.uniform((count, 1), "level in bin")[:, 0].cpu()
        place = (which + inside) / self.bins
        if self.discrete:
            t = ((place * process.steps).floor().clamp_max(process.steps - 1) + 1) / process.steps
        else:
            t = process.t_min + (1 - process.t_min) * place
        return Levels(t, 1 / (self.bins * p[which]))

    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        """Losses without importance weights; the oldest of a bin are forgotten first."""
        t = t.double().cpu()
        # An index stands at the upper end of its own part of the range: half an index back is its middle.
        place = t - 0.5 / process.steps if self.discrete else (t - process.t_min) / (1 - process.t_min)
        bins = (place * self.bins).long().clamp(0, self.bins - 1)
        for number, loss in zip(bins.tolist(), losses.tolist(), strict=True):
            self._losses[number, int(self._counts[number]) % self.memory] = loss
            self._counts[number] += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["losses"].shape != self._losses.shape:
            raise InvalidInput("the checkpoint's bins or memory differ", where="importance")
        self._losses, self._counts = state["losses"].clone(), state["counts"].clone()
