"""The variational bound on a model's likelihood, as the Markov chain that it was trained to be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sfumato.core.bound import prior_bound, step_bound
from sfumato.core.dequantize import to_levels
from sfumato.core.errors import InvalidInput
from sfumato.core.reverse import ReverseProcess
from sfumato.data.item import Batch
from sfumato.metrics.pictures import BitsEstimate, estimate, told
from sfumato.model import Model

Variance = Literal["learned", "small", "large"]


class Bound(NamedTuple):
    """Parts of a bound, each (B,) in bits a dimension.

    Args:
        prior: KL between where the data end and where walks start.
        steps: Σ of the KLs of all steps but the last.
        decoder: -log P(bytes | the last step).
        evaluations: of the denoiser.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor
    evaluations: int

    @property
    def total(self) -> Tensor:
        """The bound, (B,)."""
        return self.prior + self.steps + self.decoder


@torch.no_grad()
def chain_bound(
    reverse: ReverseProcess,
    x0: Tensor,
    *,
    terms: int | None = None,
    variance: Variance | None = None,
    clip: bool = True,
) -> Bound:
    """The bound on -log P of 8-bit data under a chain of process.steps Gaussian steps (the VLB of DDPM).

        KL(q(x_T | x0) ‖ prior) + Σ_{k=1}^{T-1} KL(q(x_{k-1} | x_k, x0) ‖ p) - log P(x0 | x_0)

    with one draw of x_k a term. A chain of T indices is what `ancestral` walks in T steps, whatever the
    process. With fewer terms the sum is estimated without bias: the terms fall into as many even parts, and
    each row draws one of each part; the decoder is always computed.

    Ho, Jain & Abbeel 2020, arXiv:2006.11239, equation 5; Nichol & Dhariwal 2021, arXiv:2102.09672.

    Args:
        reverse: denoiser, process, condition, and a seed a row.
        x0: bytes in [-1, 1], byte / 127.5 - 1, (B, C, ..).
        terms: how many of the T - 1 steps are looked at; None for all.
        variance: of the steps, as in `ancestral`; None for the learned where the model has one, else small.
        clip: hold estimates of x0 to [-1, 1].
    """
    process, rows, count = reverse.process, len(x0), reverse.process.steps - 1
    if terms is not None and terms < 1:
        raise InvalidInput(f"{terms} terms are too few", where="bound.terms", do="give at least 1")
    looks = count if terms is None else min(terms, count)

    def term(index: Tensor, moment: float) -> Tensor:
        t = (index + 1) / process.steps
        eps = reverse.source.randn_like(x0, "bound", moment)
        at = process(t).like(x0)
        said = reverse.denoiser(at.alpha * x0 + at.sigma * eps, at, reverse.condition)
        mean = said.x0.clamp(-1, 1) if clip else said.x0
        return step_bound(process, t, x0, mean, _fraction(said.variance, variance, x0))

    first = torch.zeros(rows, dtype=torch.float64)
    decoder = term(first, 0.0)
    total = torch.zeros_like(decoder)
    for look in range(looks):
        index = first + look
        if looks < count:
            u = reverse.source.uniform((rows, 1), "bound index", float(look))[:, 0]
            index = ((look + u) * count / looks).floor().clamp_max(count - 1)
        total = total + term(1 + index, look + 1.0) * (count / looks)
    return Bound(prior_bound(process, x0), total, decoder, looks + 1)


def bound(
    model: Model,
    data: Iterable[Batch],
    *,
    seed: int = 0,
    terms: int | None = 100,
    variance: Variance | None = None,
    clip: bool = True,
) -> BitsEstimate:
    """Bits a dimension of 8-bit pictures by the variational bound of the discrete chain.

    Args:
        model: of pictures in pixel space.
        data: batches of pictures in [-1, 1] with inputs.
        seed: of the first picture's noise.
        terms: steps of the chain looked at a picture; None for all of them.
        variance: see `chain_bound`.
        clip: see `chain_bound`.

    Raises:
        InvalidInput: a model of latents, pictures not of 8 bits, or none.
    """
    bits, prior, last, used, size = [], [], [], 0, 0
    for image, reverse in told(model, data, seed):
        size = image[0].numel()
        x0 = model.space.encode(to_levels(image) / 127.5 - 1)
        found = chain_bound(reverse, x0, terms=terms, variance=variance, clip=clip)
        bits.append(found.total)
        prior.append(found.prior)
        last.append(found.decoder)
        used = found.evaluations
    notes = (
        f"{used - 1} of {model.process.steps - 1} steps looked at",
        f"the last one's bytes take {float(torch.cat(last).mean()):.3g} bits/dim",
        "no dequantisation",
    )
    return estimate(
        "bound", bits, prior, evaluations=used, dimensions=size, dequantization="none", notes=notes
    )


def _fraction(said: Tensor | None, variance: Variance | None, like: Tensor) -> Tensor:
    """Where log Σ lies between small (0) and large (1), shaped as x0."""
    if variance == "learned" and said is None:
        raise InvalidInput("the model says no variance", where="bound.variance", do="use small or large")
    if variance in (None, "learned") and said is not None:
        return said
    if variance not in (None, "small", "large"):
        raise InvalidInput(f"no variance is called {variance!r}", where="bound.variance")
    return torch.full_like(like, float(variance == "large"))
