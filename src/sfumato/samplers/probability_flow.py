"""The probability-flow ODE, solved to a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, MissingExtra, NotFinite
from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The probability-flow ODE solved by a Runge-Kutta pair that chooses its own steps.

        dy/du = (y - x0(y, u)) / u,   y = x / (alpha + sigma),   u = sigma / (alpha + sigma)

    u is the time of straight flow lines: it runs over (0, 1) on every process, the slope is finite where
    alpha is 0, and the same ODE is solved whatever the path. Each step of the walk is one solve of its own,
    so that a walk of one step, times [1, 0], is the whole solve. At u = 0 the slope is 0/0, so that a step to
    clean data is solved down to the process's t_min, from where the estimate x0 is the end.

    Tolerances bound the error of each internal step, in y, by atol + rtol |y|, root mean square over a
    sample. Steps are shared by the batch and are as small as its most demanding sample needs: every sample
    keeps its tolerance in any company, but company may change it within that tolerance. Where more is wanted,
    walk samples one at a time (in `generate`, batch=1). Tolerances below what x's dtype can tell apart (8
    roundings) are raised to that; below the rounding of a network they only cost estimates.

    The state is the number of estimates so far, 0 at first.

    Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.4 (with scipy's RK45, tolerances 1e-5);
    solver: Chen 2018, torchdiffeq.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance; data are of order 1.
        method: the pair, by torchdiffeq's name: dopri5 (4th and 5th order) and dopri8 for tight tolerances,
            bosh3 (2nd and 3rd), fehlberg2 and adaptive_heun (1st and 2nd).

    Raises:
        InvalidInput: a tolerance is not above 0.
        MissingExtra: torchdiffeq is not installed.
        NotFinite: no step is small enough, as where estimates are NaN.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    method: Literal["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"] = "dopri5"

    def __post_init__(self) -> None:
        if not self.rtol > 0 or not self.atol > 0:
            raise InvalidInput("tolerances must be above 0", where="probability_flow.rtol, atol")

    def init(self, x: Tensor) -> State:
        _solver()
        return 0

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        stop = max(s, reverse.process.t_min) if reverse.level(s).sigma == 0 else s
        used = 0
        if stop < t:
            x, used = self._solve(reverse, x, reverse.level(t), reverse.level(stop))
        if stop == s:
            return x, state + used
        return reverse.denoise(x, min(t, stop)).x0, state + used + 1

    def _solve(
        self, reverse: ReverseProcess, x: Tensor, here: Level[float], there: Level[float]
    ) -> tuple[Tensor, int]:
        """x at another level, and how many estimates that took."""
        used = 0

        def slope(u: Tensor, y: Tensor) -> Tensor:
            nonlocal used
            used += 1
            time = u.item()
            return (y - reverse.denoise(y.to(x.dtype), Level(1 - time, time)).x0) / time

        span = torch.tensor(
            [level.sigma / (level.alpha + level.sigma) for level in (here, there)],
            dtype=torch.float64,
            device=x.device,
        )
        # In float64 whatever x is, for the solver's own rounding must not be taken for its error.
        y = x.double() / (here.alpha + here.sigma)
        finest = 8 * torch.finfo(x.dtype).eps
        try:
            y = _solver()(
                slope,
                y,
                span,
                rtol=max(self.rtol, finest),
                atol=max(self.atol, finest),
                method=self.method,
                # Without a step that ends at the end the solver passes it, where there may be no level, and
                # interpolates back with less than its order.
                options={"norm": hardest, "step_t": span[1:]},
            )[-1]
        except AssertionError as error:
            if not str(error).startswith(("underflow", "non-finite")):
                raise
            raise NotFinite(
                "no step is small enough for the tolerance, or the estimates are not finite",
                where="probability_flow",
                do="raise rtol and atol",
            ) from error
        return (y * (there.alpha + there.sigma)).to(x.dtype), used


def hardest(errors: Tensor) -> Tensor:
    """The largest root mean square of a row (B, ..): the norm steps are chosen by."""
    return errors.flatten(1).square().mean(1).sqrt().max()


def _solver() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise MissingExtra(
            "adaptive steps need torchdiffeq", where="probability_flow", do="pip install 'sfumato[ode]'"
        ) from None
    return odeint
