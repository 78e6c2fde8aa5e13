"""Exact likelihood of a model, by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sfumato.core.bound import prior_bound
from sfumato.core.dequantize import Dequantizer, Uniform, bits_of_bytes, to_levels
from sfumato.core.errors import InvalidInput, MissingExtra, NotFinite
from sfumato.core.level import Level
from sfumato.core.reverse import ReverseProcess
from sfumato.data.item import Batch
from sfumato.metrics.pictures import BitsEstimate, estimate, told
from sfumato.model import Model


class LogLikelihood(NamedTuple):
    """What an ODE says of data.

    Args:
        nats: log p(x), (B,) float64.
        latent: where the ODE led them at t = 1, shaped as x, float64: the noise that makes these data.
        evaluations: of the denoiser, each with its derivative.
    """

    nats: Tensor
    latent: Tensor
    evaluations: int


@dataclass(frozen=True)
class FlowLikelihood:
    """log p of data by the change of variables along the probability-flow ODE, from t_min to t = 1.

        log p(x) = log N(x_1; 0, prior_std²) + D log((alpha_1 + sigma_1) alpha / (alpha + sigma)) + ∫ div du

        dy/du = (y - x0(y, u)) / u,   div = (D - tr ∂x0/∂y) / u

    with y = x_t / (alpha + sigma), u = sigma / (alpha + sigma), and alpha, sigma in the first line those of
    t_min: x is taken for x_t / alpha there, data with their last noise still on them. u is the time of
    straight flow lines, so that every process is the same ODE, finite where alpha is 0. The
    prior is the process's own, a Gaussian about 0: where it differs from the true law at t = 1, so does the
    model's density from the data's, by log N(x_1; 0, prior_std²) - log p_1(x_1), however exact the denoiser.

    The trace is exact, with D derivatives an evaluation, or Hutchinson's estimate v·(∂x0/∂y)v, with one for
    each probe v, drawn by each row's seed once for the whole solve: unbiased as a divergence, and for sign
    probes without variance where the derivative is diagonal. Steps are shared by a batch and as small as its
    most demanding row needs, so that company changes a row within the tolerance. The integral is followed a
    dimension, so that tolerances are in x's own units and in nats a dimension.

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, arXiv:2011.13456, section 4.3 and appendix D.2;
    Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud 2019, "FFJORD", arXiv:1810.01367; Hutchinson 1990.

    Args:
        divergence: "hutchinson", or "exact" where D is small.
        probe: law of v: "rademacher" (signs) or "gaussian".
        probes: how many v are averaged.
        t_min: where data stand. Published numbers take 1e-5; None takes the process's own t_min, below which
            its networks were not trained.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        method: the Runge-Kutta pair, by torchdiffeq's name.
        max_steps: how many steps are tried before it is given up.

    Raises:
        InvalidInput: a setting that cannot be, or a tolerance not met within max_steps.
        MissingExtra: torchdiffeq is not installed.
        NotFinite: no step is small enough, as where estimates are NaN.
    """

    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    probes: int = 1
    t_min: float | None = 1e-5
    rtol: float = 1e-5
    atol: float = 1e-5
    method: Literal["dopri5", "dopri8", "bosh3"] = "dopri5"
    max_steps: int = 2000

    def __post_init__(self) -> None:
        if self.divergence not in ("hutchinson", "exact") or self.probe not in ("rademacher", "gaussian"):
            raise InvalidInput(
                f"no way to a trace: {self.divergence}, {self.probe}",
                where="likelihood",
                do="hutchinson or exact; rademacher or gaussian",
            )
        if self.probes < 1 or self.max_steps < 1 or not self.rtol > 0 or not self.atol > 0:
            raise InvalidInput(
                "probes and max_steps must be 1 or more, tolerances above 0", where="likelihood"
            )
        if self.method not in ("dopri5", "dopri8", "bosh3"):
            raise InvalidInput(
                f"no method is called {self.method!r}", where="likelihood", do="dopri5, dopri8 or bosh3"
            )
        if self.t_min is not None and not 0 < self.t_min < 1:
            raise InvalidInput(f"{self.t_min} is not between 0 and 1", where="likelihood.t_min")

    @torch.no_grad()
    def __call__(self, reverse: ReverseProcess, x: Tensor) -> LogLikelihood:
        """log p of data x (B, ..), with the condition and, for probes, the seeds of the reverse process."""
        solve, process = _solver(), reverse.process
        rows, size, used = len(x), x[0].numel(), 0
        here, there = process(process.t_min if self.t_min is None else self.t_min), process(1.0)
        probes = self._drawn(reverse, x)

        def slope(u: Tensor, state: Tensor) -> Tensor:
            nonlocal used
            used += 1
            time = u.item()
            y = state[:, :-1].view(x.shape)
            with torch.enable_grad():
                at = y.to(x.dtype).detach().requires_grad_()
                x0 = reverse.denoise(at, Level(1 - time, time)).x0
                trace = _exact_trace(x0, at) if self.divergence == "exact" else _trace(x0, at, probes)
            change = (y - x0.detach().double()) / time
            return torch.cat((change.flatten(1), (1 - trace[:, None] / size) / time), dim=1)

        ends = [level.sigma / (level.alpha + level.sigma) for level in (here, there)]
        span = torch.tensor(ends, dtype=torch.float64, device=x.device)
        start = x.detach().double().flatten(1) * (here.alpha / (here.alpha + here.sigma))
        state = torch.cat((start, start.new_zeros(rows, 1)), dim=1)
        finest = 8 * torch.finfo(x.dtype).eps
        try:
            end = solve(
                slope,
                state,
                span,
                rtol=max(self.rtol, finest),
                atol=max(self.atol, finest),
                method=self.method,
                # Without a step that ends at the end the solver passes it, where there may be no level.
                options={"norm": _hardest, "step_t": span[1:], "max_num_steps": self.max_steps},
            )[-1]
        except AssertionError as error:
            if str(error).startswith("max_num_steps"):
                raise InvalidInput(
                    f"{self.max_steps} steps do not meet the tolerance",
                    where="likelihood",
                    do="raise rtol and atol, or t_min, or max_steps",
                ) from error
            if not str(error).startswith(("underflow", "non-finite")):
                raise
            raise NotFinite(
                "no step is small enough for the tolerance, or the estimates are not finite",
                where="likelihood",
                do="raise rtol and atol",
            ) from error
        latent = end[:, :-1] * (there.alpha + there.sigma)
        scale = (there.alpha + there.sigma) * here.alpha / (here.alpha + here.sigma)
        prior = process.prior_std
        noise = (latent / prior).square().mean(1) / 2 + math.log(2 * math.pi) / 2 + math.log(prior)
        nats = size * (end[:, -1] + math.log(scale) - noise)
        return LogLikelihood(nats, latent.view(x.shape), used)

    def _drawn(self, reverse: ReverseProcess, x: Tensor) -> list[Tensor]:
        if self.divergence == "exact":
            return []
        draws = []
        for number in range(self.probes):
            if self.probe == "gaussian":
                draws.append(reverse.source.randn_like(x, "hutchinson", float(number)))
            else:
                u = reverse.source.uniform(x.shape, "hutchinson", float(number))
                draws.append((2 * (u < 0.5).double() - 1).to(x))
        return draws


def likelihood(
    model: Model,
    data: Iterable[Batch],
    *,
    seed: int = 0,
    dequantizer: Dequantizer | None = None,
    flow: FlowLikelihood | None = None,
) -> BitsEstimate:
    """Bits a dimension of 8-bit pictures by the probability-flow ODE, an upper bound by dequantisation alone.

        bits = -(log p(x) - log q(u)) / (D log 2) + 7,   x = (byte + u) / 128 - 1

    A network trained on bytes that were never dequantised may say that nothing lies between them; its numbers
    are large by right. Song et al. 2021, arXiv:2011.13456, table 2.

    Args:
        model: of pictures in pixel space.
        data: batches of pictures in [-1, 1] with inputs.
        seed: of the first picture's dequantisation and probes.
        dequantizer: uniform if not said.
        flow: how it is integrated; from the larger of 1e-5 and the process's t_min if not said.

    Raises:
        InvalidInput: a model of latents, pictures not of 8 bits, or none.
    """
    dequantizer = dequantizer or Uniform()
    flow = flow or FlowLikelihood(t_min=max(1e-5, model.process.t_min))
    bits, prior, used, size = [], [], 0, 0
    for image, reverse in told(model, data, seed):
        size = image[0].numel()
        with torch.no_grad():
            x, log_q = dequantizer(to_levels(image), reverse.source)
        found = flow(reverse, model.space.encode(x))
        bits.append(bits_of_bytes(found.nats - log_q.double(), size))
        prior.append(prior_bound(model.process, x))
        used += found.evaluations * len(image)
    probes = f"by {flow.probes} {flow.probe} probe" + "s" * (flow.probes > 1)
    kind = type(dequantizer).__name__.lower()
    t_min = model.process.t_min if flow.t_min is None else flow.t_min
    notes = (
        "exact trace" if flow.divergence == "exact" else f"trace {probes}",
        f"{kind} dequantisation",
        f"data at t = {t_min:.3g}, noise {model.process(t_min).ratio:.2g}",
    )
    mean = used / sum(map(len, bits))
    return estimate(
        "likelihood", bits, prior, evaluations=mean, dimensions=size, dequantization=kind, notes=notes
    )


def _trace(x0: Tensor, y: Tensor, probes: list[Tensor]) -> Tensor:
    """tr ∂x0/∂y by probes, (B,) float64."""
    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for number, probe in enumerate(probes):
        (back,) = torch.autograd.grad((x0 * probe).sum(), y, retain_graph=number + 1 < len(probes))
        total += (back.double() * probe).flatten(1).sum(1)
    return total / len(probes)


def _exact_trace(x0: Tensor, y: Tensor) -> Tensor:
    """tr ∂x0/∂y by one derivative a dimension, (B,) float64; rows do not meet, so all go at once."""
    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    flat, size = x0.flatten(1), y[0].numel()
    for place in range(size):
        (back,) = torch.autograd.grad(flat[:, place].sum(), y, retain_graph=place + 1 < size)
        total += back.flatten(1)[:, place].double()
    return total


def _hardest(errors: Tensor) -> Tensor:
    """The largest error of a row (B, D + 1): root mean square of its place, or its integral's."""
    place = errors[:, :-1].square().mean(1).sqrt()
    return torch.maximum(place, errors[:, -1].abs()).max()


def _solver() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise MissingExtra(
            "exact likelihood needs torchdiffeq", where="likelihood", do="pip install 'sfumato[ode]'"
        ) from None
    return odeint
