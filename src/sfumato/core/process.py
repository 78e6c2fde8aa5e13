"""Process: forward noising as two functions of time, from which all else follows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from sfumato.core.level import Level

if TYPE_CHECKING:
    from sfumato.core.noise import Noise


class Process:
    """Forward noising: x_t = alpha(t) · x0 + sigma(t) · eps, t in [0, 1], 0 is data and 1 is noise.

    A process writes `level` and, where it has a closed form, `invert`; drift, diffusion and velocity follow.
    The level at t = 0 is exactly (1, 0) whatever the formula's limit, so that every walk can end in clean
    data.

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, "Score-Based Generative Modeling through
    Stochastic Differential Equations", arXiv:2011.13456; Kingma, Salimans, Poole & Ho 2021, "Variational
    Diffusion Models", arXiv:2107.00630.
    """

    steps: int = 1000
    """Number of indices for time grids and networks that count them: index k sits at t = (k + 1) / steps."""
    t_min: float = 1e-3
    """The smallest noisy time worth asking a network about; the last step of a walk goes from there to 0."""
    prior_std: float = 1.0
    """Standard deviation of what a walk starts from at t = 1."""

    def level(self, t: Tensor) -> Level[Tensor]:
        """The level at times t (any shape, float64)."""
        raise NotImplementedError

    def invert(self, log_snr: Tensor) -> Tensor:
        """Times at which log(alpha/sigma) has these values, by bisection; processes with a closed form
        override.
        """
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            too_clean = self.level(middle).log_snr > log_snr
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return (low + high) / 2

    @overload
    def __call__(self, t: float) -> Level[float]: ...
    @overload
    def __call__(self, t: Tensor) -> Level[Tensor]: ...
    def __call__(self, t: float | Tensor) -> Level[float] | Level[Tensor]:
        """The level at time t: a float gives floats (remembered), a tensor gives tensors of its shape."""
        if isinstance(t, Tensor):
            t = t.to(torch.float64)
            level = self.level(t)
            return Level(torch.where(t > 0, level.alpha, 1.0), torch.where(t > 0, level.sigma, 0.0))
        return _level(self, t)

    @overload
    def time(self, log_snr: float) -> float: ...
    @overload
    def time(self, log_snr: Tensor) -> Tensor: ...
    def time(self, log_snr: float | Tensor) -> float | Tensor:
        """The time of a log(alpha/sigma), clamped to the range of the process."""
        if isinstance(log_snr, Tensor):
            log_snr = log_snr.to(torch.float64)
            # Pure noise is as far as e^-300 of data: the inverse of no process need cope with infinity.
            t = self.invert(log_snr.clamp_min(-300)).clamp(0.0, 1.0)
            return torch.where(log_snr == math.inf, 0.0, t)
        return _time(self, log_snr)

    @overload
    def rates(self, t: float) -> Level[float]: ...
    @overload
    def rates(self, t: Tensor) -> Level[Tensor]: ...
    def rates(self, t: float | Tensor) -> Level[float] | Level[Tensor]:
        """Time derivatives (d alpha/dt, d sigma/dt), by automatic differentiation; floats are remembered.

        Where one is infinite, as at t = 0 of some, it may come as nan.
        """
        if not isinstance(t, Tensor):
            return _rates(self, t)
        # Backwards: forward-mode asks Python about every constant of a formula, and takes ten times as long.
        with torch.inference_mode(False), torch.enable_grad():
            at = t.detach().clone().requires_grad_()
            level = self.level(at)
            alpha, sigma = (
                torch.autograd.grad(each.sum(), at, retain_graph=True)[0]
                if each.requires_grad
                else torch.zeros_like(at)
                for each in level
            )
        return Level(alpha, sigma)

    def drift(self, t: Tensor) -> Tensor:
        """f(t) of dx = f x dt + g dW: d log(alpha)/dt."""
        return self.rates(t).alpha / self.level(t).alpha

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) of dx = f x dt + g dW: g² = d(sigma²)/dt - 2 f sigma²."""
        level, rates = self.level(t), self.rates(t)
        return (2 * level.sigma * (rates.sigma - rates.alpha / level.alpha * level.sigma)).clamp_min(0).sqrt()

    def sde(self, t: float) -> tuple[float, float]:
        """f and g at one time."""
        level, rates = self(t), self.rates(t)
        f = rates.alpha / level.alpha
        return f, math.sqrt(max(2 * level.sigma * (rates.sigma - f * level.sigma), 0.0))

    def prior(self, shape: Sequence[int], noise: Noise, t: float = 1.0) -> Tensor:
        """Where a walk starts, x at t = 1 or a little below: shape (B, ...), float32 on the CPU."""
        scale = 1.0 if t == 1 else self(t).norm / self(1.0).norm
        return noise.randn(shape, "prior") * (self.prior_std * scale)

    def log_snr_range(self) -> tuple[float, float]:
        """Lowest and highest finite log(alpha/sigma) a network is asked about.

        Where the data vanish altogether at t = 1 (flow, zero terminal SNR) the lowest is that of one index
        before.
        """
        lowest = self(1.0).log_snr
        if not math.isfinite(lowest) or lowest < -25:
            lowest = self(1.0 - 1.0 / self.steps).log_snr
        return lowest, self(self.t_min).log_snr


@functools.lru_cache(maxsize=8192)
def _level(process: Process, t: float) -> Level[float]:
    if t <= 0:
        return Level(1.0, 0.0)
    level = process.level(torch.tensor(t, dtype=torch.float64, device="cpu"))
    return Level(level.alpha.item(), level.sigma.item())


@functools.lru_cache(maxsize=8192)
def _rates(process: Process, t: float) -> Level[float]:
    return Level(*(each.item() for each in process.rates(torch.tensor(t, dtype=torch.float64, device="cpu"))))


@functools.lru_cache(maxsize=8192)
def _time(process: Process, log_snr: float) -> float:
    return process.time(torch.tensor(log_snr, dtype=torch.float64, device="cpu")).item()
