"""UniPC: unified predictor-corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC: a multistep predictor, and a corrector that reuses the estimate of the next step.

    The estimate at the predicted x_s serves twice: to correct x_s (one order higher, no further estimate) and
    as the first of the next step. Data-prediction form, B(h) = e^h - 1 ("bh2") or h ("bh1").

    Zhao, Bai, Rao, Zhou & Lu 2023, "UniPC", arXiv:2302.04867, algorithms 5 to 8.

    Args:
        order: p of the predictor, 1 to 4; 2 suits guided, 3 unguided models.
        solver: "bh2", or "bh1" for unguided models in very few steps.
        corrector: without it the predictor alone.
    """

    order: int = 2
    solver: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise InvalidInput(f"{self.order} is not from 1 to 4", where="unipc.order")

    def init(self, x: Tensor) -> State:
        return (), None

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        history, last = state
        here, there = reverse.level(t), reverse.level(s)
        x0 = reverse.denoise(x, here).x0
        if self.corrector and last is not None:
            # x is the prediction the estimate was made at; it is corrected, the estimate is kept.
            before, x_before, order = last
            x = self._update(x_before, before, here, history, order, x0)
        history = ((here.log_snr, x0), *history)[: self.order]
        order = len(history) if there.sigma > 0 else 1
        x_s = self._update(x, here, there, history, order, None)
        last = (here, x, order) if math.isfinite(here.log_snr) and there.sigma > 0 else None
        return x_s, (history, last)

    def _update(
        self,
        x: Tensor,
        here: Level[float],
        there: Level[float],
        history: tuple[tuple[float, Tensor], ...],
        order: int,
        ahead: Tensor | None,
    ) -> Tensor:
        """From here to there with the differences of `order` estimates, and the one ahead when correcting."""
        now, x0 = history[0]
        h = there.log_snr - now
        if there.sigma == 0:
            return there.alpha * x0
        base = x * (there.sigma / here.sigma) - x0 * (there.alpha * math.expm1(-h))
        if not math.isfinite(h):
            return base
        nodes = [(past - now) / h for past, _ in history[1:order]]
        changes = [
            (value - x0) / node
            for node, (_, value) in zip(nodes, history[1:order], strict=True)
            if node != -math.inf
        ]
        nodes = [node for node in nodes if node != -math.inf]
        if ahead is not None:
            nodes, changes = [*nodes, 1.0], [*changes, ahead - x0]
        if not nodes:
            return base
        scale = -h if self.solver == "bh1" else math.expm1(-h)
        weights = _weights(nodes, -h, scale)
        if len(nodes) == 1:
            # Both orders' single weight is ½ in the limit of small h, and the paper's choice at any h.
            weights = [0.5]
        total: Any = sum(weight * change for weight, change in zip(weights, changes, strict=True))
        return base - total * (there.alpha * scale)


def _weights(nodes: list[float], h: float, scale: float) -> list[float]:
    """Solve R ρ = b: the weights whose Taylor coefficients match those of the exact step (equation 5)."""
    phi = math.expm1(h) / h - 1
    right, factorial = [], 1.0
    for i in range(1, len(nodes) + 1):
        factorial *= i
        right.append(phi * factorial / scale)
        phi = phi / h - 1 / (factorial * (i + 1))
    rows = torch.tensor([[node**power for node in nodes] for power in range(len(nodes))], dtype=torch.float64)
    return torch.linalg.solve(rows, torch.tensor(right, dtype=torch.float64)).tolist()
