"""Churn: the stochastic sampler of EDM, around any sampler of single steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State
from sfumato.samplers.heun import Heun


@dataclass(frozen=True)
class Churn(Sampler):
    """Fresh noise before each step of another sampler, which then steps from that little higher level.

        γ = min(amount, sqrt(2) - 1) where low <= ς <= high, else 0;   ς = sigma/alpha,   ς̂ = (1 + γ) ς
        x̂/α̂ = x/α + sqrt(ς̂² - ς²) · noise_scale · z,   then a step from t̂, the time of ς̂, to s

    Noise added and removed again corrects errors of earlier steps, and brings its own: for a perfect model
    less is better, for a real one there is a best amount. With Heun's method it is the sampler of EDM. The
    lift never passes the end of the process, t = 1 (EDM's published settings all keep `high` below sigma_max,
    where the limit is never met); in pure noise nothing is added.

    The inner sampler may be any that needs no memory of earlier steps; it is one step that starts anew each
    time. (Multistep samplers would have to join estimates from before and after the fresh noise.)

    Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv:2206.00364, algorithm 2 and table 5.

    Args:
        sampler: what steps from the lifted level.
        amount: S_churn over the number of steps: share by which sigma/alpha grows, at most sqrt(2) - 1; 0
            leaves the inner sampler as it is. EDM's ImageNet-64: 40 over 256.
        low: S_min, churn only from this sigma/alpha on.
        high: S_max, and up to this.
        noise_scale: S_noise, standard deviation of the fresh noise; EDM uses 1.003 to 1.007.

    Raises:
        InvalidInput: settings that make no sense, or an inner sampler with a memory.
    """

    sampler: Sampler = field(default_factory=Heun)
    amount: float = 0.1
    low: float = 0.0
    high: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.amount >= 0 or not self.noise_scale >= 0:
            raise InvalidInput(
                "noise cannot be added in a negative amount", where="churn.amount, noise_scale"
            )
        if not self.low <= self.high:
            raise InvalidInput(f"no level lies from {self.low} up to {self.high}", where="churn.low, high")

    def init(self, x: Tensor) -> State:
        memory = self.sampler.init(x)
        if self.amount > 0 and memory is not None:
            name = type(self.sampler).__name__
            raise InvalidInput(
                f"{name} carries something from step to step, and churn makes every step start anew",
                where="churn.sampler",
                do="give heun, dpm2 or euler",
            )
        return memory

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        higher = self.lifted(reverse.process, t)
        if higher > t:
            x = noised(reverse, x, t, higher, "churn", self.noise_scale)
            # Two steps may be lifted to the same time, t = 1: their draws are told apart by where they began.
            reverse = replace(reverse, turn=f"{reverse.turn}churn {t!r} ")
        return self.sampler.step(reverse, x, higher, s, state)

    def lifted(self, process: Process, t: float) -> float:
        """The time a step from t starts at: t itself, or later."""
        ratio = process(t).ratio
        if self.amount <= 0 or ratio == math.inf or not self.low <= ratio <= self.high:
            return t
        return max(t, process.time(-math.log(ratio * (1 + min(self.amount, math.sqrt(2) - 1)))))


def noised(
    reverse: ReverseProcess, x: Tensor, t: float, higher: float, purpose: str, noise_scale: float = 1.0
) -> Tensor:
    """x at time t noised on to a higher time: a draw from q(x_higher | x_t).

    x_higher = f x_t + sqrt(sigma_higher² - f² sigma_t²) z,   f = alpha_higher / alpha_t
    """
    here, there = reverse.level(t), reverse.level(higher)
    fade = there.alpha / here.alpha
    kept = fade * here.sigma
    # (a - b)(a + b), for close levels, where a² - b² would lose digits.
    std = math.sqrt(max((there.sigma - kept) * (there.sigma + kept), 0.0))
    return x * fade + (std * noise_scale) * reverse.randn_like(x, t, purpose)
