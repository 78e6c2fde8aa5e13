"""Reverse process: what a sampler integrates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.hooks import Chain, Hooks
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.process import Process

Plan = Callable[[Level[float]], Hooks | None]


def always(hooks: Hooks) -> Plan:
    """The same hooks at every level."""
    return lambda level: hooks


def nested(*plans: Plan | None) -> Plan | None:
    """Plans as one: at every level the hooks of all, those of the first outermost."""
    held = [plan for plan in plans if plan is not None]
    if len(held) < 2:
        return held[0] if held else None

    def hooks(level: Level[float]) -> Hooks | None:
        chosen = [each for plan in held if (each := plan(level)) is not None]
        return Chain(*chosen) if len(chosen) > 1 else next(iter(chosen), None)

    return hooks


@dataclass(frozen=True)
class ReverseProcess:
    """A denoiser walked backwards along a path.

    Args:
        denoiser: the estimate, guidance included.
        process: the path walked, not necessarily the one the network was trained on.
        condition: what the denoiser is told.
        source: random numbers, one seed a row.
        plan: chooses hooks by level, so that nobody counts steps.
        turn: put before the purpose of every draw; a walk that passes the same times again gives each pass
            its own, so that their numbers differ.
    """

    denoiser: Denoiser
    process: Process
    condition: Condition = field(default_factory=Condition)
    source: Noise = field(default_factory=lambda: Noise([0]))
    plan: Plan | None = None
    turn: str = ""

    def level(self, t: float) -> Level[float]:
        """The level of the path at time t."""
        return self.process(t)

    def denoise(self, x: Tensor, at: float | Level[float]) -> Denoised:
        """The estimate at a time of the path or at any level."""
        level = at if isinstance(at, Level) else self.process(at)
        condition = self.condition
        if self.plan is not None and (hooks := self.plan(level)) is not None:
            condition = replace(condition, hooks=hooks)
        return self.denoiser(x, level, condition)

    def noise(self, x: Tensor, at: float | Level[float]) -> Tensor:
        """The estimated noise, eps = (x - alpha x0) / sigma."""
        level = at if isinstance(at, Level) else self.process(at)
        return (x - level.alpha * self.denoise(x, level).x0) / level.sigma

    def score(self, x: Tensor, at: float | Level[float]) -> Tensor:
        """The estimated gradient of log p_t(x): -eps / sigma."""
        level = at if isinstance(at, Level) else self.process(at)
        return (level.alpha * self.denoise(x, level).x0 - x) / level.sigma**2

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt of the probability-flow ODE: (d alpha/dt) x0 + (d sigma/dt) eps."""
        level = self.process(t)
        rates = self.process.rates(t)
        x0 = self.denoise(x, level).x0
        return rates.alpha * x0 + rates.sigma * (x - level.alpha * x0) / level.sigma

    def drift(self, x: Tensor, t: float) -> Tensor:
        """The drift of the reverse-time SDE: f x - g² score (Song et al. 2021, equation 6)."""
        f, g = self.process.sde(t)
        return f * x - g**2 * self.score(x, t)

    def randn_like(self, x: Tensor, t: float, purpose: str = "step") -> Tensor:
        """Fresh normal numbers for a purpose at a time of the walk."""
        return self.source.randn_like(x, self.turn + purpose, t)

    def prior(self, shape: Sequence[int], t: float = 1.0) -> Tensor:
        """Where a walk from time t starts: noise of the path's scale."""
        return self.process.prior(shape, self.source, t)
