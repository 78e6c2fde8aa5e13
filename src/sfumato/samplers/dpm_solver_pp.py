"""DPM-Solver++ multistep, deterministic and stochastic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State

_LONGEST = 0.8
"""The longest step, in λ, of third order: beyond it the second difference of the estimates is no derivative,
and its large weight spoils pictures (at 10 of Karras' steps the model of docs/zoo.md had twice the KID)."""


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++: the linear part of the ODE solved exactly, the estimated data extrapolated from past
    steps.

    With λ = log(alpha/sigma), h = λ_s - λ_t, h_η = h (1 + η) and D, D1, D2 the estimate and its differences:

        x_s = (sigma_s/sigma_t) e^(-ηh) x + alpha_s [(1 - e^(-h_η)) D + φ2 D1 - φ3 D2] + noise
        noise = sigma_s sqrt(1 - e^(-2ηh)) z

    One estimate a step; orders 1 (DDIM), 2 ("2M") and 3 ("3M"). η = 1 gives the SDE solvers.

    Lu, Zhou, Bao, Chen, Li & Zhu 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 2 and appendix A; third
    order and φ form as in Gonzalez et al. 2023, arXiv:2305.14267, and k-diffusion.

    Args:
        order: 1, 2 or 3; reached as history allows, and 1 for the last step to clean data. Steps longer than
            .8 in λ are taken in second order at most.
        eta: 0 for the ODE, 1 for the reverse SDE.
        variant: second-order rule, "midpoint" or "heun"; they differ in the third order of h.
    """

    order: int = 2
    eta: float = 0.0
    variant: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise InvalidInput(f"{self.order} is not 1, 2 or 3", where="dpm_solver_pp.order")

    def init(self, x: Tensor) -> State:
        return ()

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        here, there = reverse.level(t), reverse.level(s)
        x0 = reverse.denoise(x, here).x0
        history = ((here.log_snr, x0), *state)[: self.order]
        if there.sigma == 0:
            return there.alpha * x0, history
        h = there.log_snr - here.log_snr
        fade = math.exp(-self.eta * h) if self.eta else 1.0
        x_s = x * (there.sigma / here.sigma * fade)
        weights = self._weights([past for past, _ in history], h)
        for weight, (_, estimate) in zip(weights, history, strict=True):
            x_s = torch.add(x_s, estimate, alpha=there.alpha * weight)
        if self.eta:
            std = there.sigma * math.sqrt(-math.expm1(-2 * self.eta * h))
            x_s = x_s + std * reverse.randn_like(x, t)
        return x_s, history

    def _weights(self, log_snr: list[float], h: float) -> list[float]:
        """What each estimate counts, newest first: (1 - e^(-h_η)) D + φ2 D1 - φ3 D2 sorted by estimate."""
        stretched = h * (1 + self.eta)
        gain = -math.expm1(-stretched)
        if len(log_snr) == 1 or not math.isfinite(h):
            return [gain] + [0.0] * (len(log_snr) - 1)
        phi2 = 1 - gain / stretched
        r0 = (log_snr[0] - log_snr[1]) / h
        if len(log_snr) == 2 or h > _LONGEST:
            first = gain / 2 if self.variant == "midpoint" and self.order == 2 else phi2
            return [gain + first / r0, -first / r0] + [0.0] * (len(log_snr) - 2)
        r1 = (log_snr[1] - log_snr[2]) / h
        # Twice the second divided difference is the second derivative; k-diffusion and diffusers take it once
        # and lose the third order.
        bend = (r0 * phi2 - 2 * phi2 / stretched + 1) / (r0 + r1)
        return [gain + (phi2 + bend) / r0, -(phi2 + bend) / r0 - bend / r1, bend / r1]
