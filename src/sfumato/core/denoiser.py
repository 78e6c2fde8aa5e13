"""Denoisers: from (x, level, condition) to the posterior mean of the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.level import Level
from sfumato.core.prediction import Prediction
from sfumato.core.process import Process


class Denoised(NamedTuple):
    """What a denoiser says.

    Args:
        x0: posterior mean of the data, shaped as x.
        variance: for models of learned range, where log Σ lies between the smallest (0) and the largest (1)
            reverse variance (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15); else None.
    """

    x0: Tensor
    variance: Tensor | None = None


Denoiser = Callable[[Tensor, Level[Any], Condition], Denoised]

TIME_INPUTS: dict[str, Callable[[Process, Tensor, Tensor], Tensor]] = {
    "index": lambda process, t, log_snr: t * process.steps - 1,
    "reverse_index": lambda process, t, log_snr: (1 - t) * process.steps,
    "continuous_index": lambda process, t, log_snr: t * (process.steps - 1),
    "rescaled_index": lambda process, t, log_snr: (t * process.steps - 1) * 1000 / process.steps,
    "thousand": lambda process, t, log_snr: 1000 * t,
    "time": lambda process, t, log_snr: t,
    "log_sigma": lambda process, t, log_snr: -log_snr,
    "log_half_sigma": lambda process, t, log_snr: -log_snr - math.log(2),
    "quarter_log_sigma": lambda process, t, log_snr: -log_snr / 4,
}
"""How networks like to be told the time: by index k (DDPM, ADM, DiT, SD), counted from the most noise (NCSN),
stretched to begin at t = 0 (999 t: VP SDEs) or as if of 1000 (improved DDPM); by 1000 t (flow models) or t;
by log(sigma / alpha) (score networks), that of half the sigma (those of pictures in [0, 1], seen in [-1, 1])
or a quarter of it (EDM)."""


class NetworkDenoiser(nn.Module):
    """A network, the process it was trained on and what it predicts, as a denoiser of any level.

    A level of another process is met by rescaling x to the training scale and looking the training time up by
    log-SNR, so that a network trained on one path can be walked along another.

    Args:
        network: network(x (B, C, ..), time (B,), condition) → (B, C, ..), or (B, 2C, ..) with
            `learned_range`.
        process: what it was trained on.
        prediction: what it outputs.
        time_input: how it is told the time, a name of TIME_INPUTS.
        learned_range: whether a second half of the channels says the reverse variance.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: Prediction,
        time_input: str = "index",
        learned_range: bool = False,
    ) -> None:
        super().__init__()
        if time_input not in TIME_INPUTS:
            raise InvalidInput(
                f"unknown time input {time_input!r}", where="time_input", do=nearest(time_input, TIME_INPUTS)
            )
        self.network = network
        self.process = process
        self.prediction = prediction
        self.time_input = time_input
        self.learned_range = learned_range

    def forward(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        """x (B, C, ..) at a level, floats or tensors (B, 1, .., 1) → Denoised."""
        skip: Tensor | float
        out: Tensor | float
        setting = (self.process, self.prediction, self.time_input)
        if isinstance(level.alpha, Tensor):
            shape = level.alpha.shape
            alpha, sigma = level.alpha.double().flatten(), cast(Tensor, level.sigma).double().flatten()
            scale, time, *linear = _coefficients(*setting, Level(alpha, sigma))
            x_in = x * scale.to(x).view(shape)
            skip, out = linear[0].to(x).view(shape), linear[1].to(x).view(shape)
            time = time.to(x.device, torch.float32)
        else:
            into, value, skip, out = _floats(*setting, level.alpha, level.sigma)
            time = torch.full((x.shape[0],), value, device=x.device)
            x_in = x if into == 1 else x * into
        output = self.network(x_in, time, condition).to(x.dtype)
        variance = None
        if self.learned_range:
            output, raw = output.chunk(2, dim=1)
            variance = (raw + 1) / 2
        if isinstance(out, Tensor):
            return Denoised(torch.addcmul(x * skip, output, out), variance)
        return Denoised(torch.add(x * skip, output, alpha=out), variance)


def _coefficients(
    process: Process, prediction: Prediction, time_input: str, level: Level[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(input scale, network time, skip, out) for levels (B,) float64: x0 = skip · x + out · output."""
    log_snr = level.log_snr
    if prediction.needs_signal:
        # Where alpha is 0 these outputs say nothing of the data: ask at the last level where they do.
        log_snr = log_snr.clamp_min(process.log_snr_range()[0])
    t = process.time(log_snr)
    own = process(t)
    rescale = own.norm / level.norm
    skip, out = prediction.coefficients(own)
    time = TIME_INPUTS[time_input](process, t, own.log_snr)
    return rescale * prediction.scale(own), time, rescale * skip, out


@functools.lru_cache(maxsize=8192)
def _floats(
    process: Process, prediction: Prediction, time_input: str, alpha: float, sigma: float
) -> tuple[float, float, float, float]:
    level = Level(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    into, time, skip, out = (c.item() for c in _coefficients(process, prediction, time_input, level))
    # Rounding of the time look-up must not change a model walked along its own path.
    return (1.0 if math.isclose(into, 1.0, rel_tol=1e-12) else into), time, skip, out
