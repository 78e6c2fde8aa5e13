"""PLMS: pseudo linear multistep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, move


@dataclass(frozen=True)
class PLMS(Sampler):
    """Pseudo linear multistep: Adams-Bashforth on the estimated noise, carried by DDIM's step.

    The first step is a pseudo Heun step, so that N steps take N + 1 estimates; weights assume even steps.

    Liu, Ren, Lin & Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778,
    equation 12; the start is Crowson's.
    """

    def init(self, x: Tensor) -> State:
        return ()

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        eps = reverse.noise(x, here)
        if there.sigma == 0 and not state:
            return _carry(x, eps, here, there), (eps,)
        if not state:
            ahead = reverse.noise(_carry(x, eps, here, there), there)
            mean = (eps + ahead) / 2
        elif len(state) == 1:
            mean = (3 * eps - state[0]) / 2
        elif len(state) == 2:
            mean = (23 * eps - 16 * state[0] + 5 * state[1]) / 12
        else:
            mean = (55 * eps - 59 * state[0] + 37 * state[1] - 9 * state[2]) / 24
        return _carry(x, mean, here, there), (eps, *state)[:3]


def _carry(x: Tensor, eps: Tensor, here: Level[float], there: Level[float]) -> Tensor:
    """DDIM's step with a given noise; from alpha = 0, where eps says nothing of the data, the data are taken
    as 0.
    """
    if here.alpha == 0:
        return move(x, 0 * x, here, there)
    return (there.alpha / here.alpha) * (x - here.sigma * eps) + there.sigma * eps
