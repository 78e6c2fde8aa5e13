"""Linear multistep in sigma space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.ratio import slope
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class LMS(Sampler):
    """Linear multistep (Adams-Bashforth on uneven steps) in sigma/alpha: one estimate a step, up to fourth
    order.

    The slopes of the last steps are joined by a polynomial, which is integrated exactly.

    Crowson 2022, k-diffusion; Hairer, Nørsett & Wanner, "Solving Ordinary Differential Equations I", III.5.

    Args:
        order: how many slopes are used, 1 to 4.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise InvalidInput(f"{self.order} is not from 1 to 4", where="lms.order")

    def init(self, x: Tensor) -> State:
        return ()

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        if here.alpha == 0:
            return move(x, reverse.denoise(x, here).x0, here, there), state
        y = x / here.alpha
        history = ((here.ratio, slope(reverse, y, here.ratio)), *state)[: self.order]
        weights = adams([ratio for ratio, _ in history], here.ratio, there.ratio)
        for weight, (_, change) in zip(weights, history, strict=True):
            y = y + weight * change
        return there.alpha * y, history


def adams(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange polynomials over the nodes, exact by a Gauss rule."""
    half, middle = (end - start) / 2, (end + start) / 2
    # Two Gauss points integrate cubics exactly: enough for four nodes.
    points = [middle - half / 3**0.5, middle + half / 3**0.5]
    weights = []
    for j, node in enumerate(nodes):
        total = 0.0
        for point in points:
            value = half
            for k, other in enumerate(nodes):
                if k != j:
                    value *= (point - other) / (node - other)
            total += value
        weights.append(total)
    return weights
