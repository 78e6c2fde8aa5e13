"""Pictures as a model is asked for their likelihood: what is said of them, and noise of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.space import Space
from sfumato.data.item import Batch
from sfumato.metrics.estimate import Estimate, half_width
from sfumato.model import Model


@dataclass(frozen=True)
class BitsEstimate(Estimate):
    """Bits a dimension: how long a picture would be in a file made with the model, over its numbers.

    Args:
        evaluations: of the network, for a picture.
        dimensions: numbers of a picture.
        prior: the part of it that is owed to the prior's mismatch, at most: the mean over pictures of
            KL(q(x_1 | x0) ‖ prior), which is not less than KL(p_1 ‖ prior).
        dequantization: what became of the bytes: "uniform", "variational", or "none".
    """

    evaluations: int = 0
    dimensions: int = 0
    prior: float = 0.0
    dequantization: str = "none"


class Told(NamedTuple):
    """Some pictures.

    Args:
        image: (B, C, H, W) in [-1, 1].
        reverse: the model told what is said of them, with a seed for each.
    """

    image: Tensor
    reverse: ReverseProcess


def told(model: Model, data: Iterable[Batch], seed: int) -> Iterator[Told]:
    """Batches of pictures, each row with the noise of its own seed: seed, seed + 1, ...

    Raises:
        InvalidInput: the model is none of pictures themselves, or there are no pictures.
    """
    done = 0
    for batch in data:
        rows = len(batch.image)
        image = batch.image.to(model.device)
        _refuse_other_spaces(model, image)
        # What no picture says is not told at all.
        inputs = {name: batch.inputs.get(name) for name in model.conditioner.inputs}
        said = {name: v for name, v in inputs.items() if v is not None and any(one is not None for one in v)}
        condition = model.conditioner(rows, **said).to(model.device)
        seeds = Noise(range(seed + done, seed + done + rows))
        yield Told(image, ReverseProcess(model.denoiser, model.process, condition, seeds))
        done += rows
    if not done:
        raise InvalidInput("there are no pictures", where="data")


def estimate(
    name: str,
    bits: list[Tensor],
    prior: list[Tensor],
    *,
    evaluations: float,
    dimensions: int,
    dequantization: str,
    notes: tuple[str, ...] = (),
) -> BitsEstimate:
    """The mean over pictures with its 95 % interval.

    Args:
        name: of the metric.
        bits: a dimension, of batches of pictures.
        prior: KL(q(x_1 | x0) ‖ prior) of each, in bits a dimension.
        evaluations: of the network, for a picture.
        dimensions: numbers of a picture.
        dequantization: what became of the bytes.
        notes: what else was done.
    """
    every = torch.cat([part.double().cpu() for part in bits])
    bad = (~torch.isfinite(every)).nonzero()
    if len(bad):
        raise NotFinite(f"the likelihood of picture {int(bad[0])} is not finite", where=name)
    count, value = len(every), float(every.mean())
    low = high = None
    if count > 1:
        half = half_width(float(every.std()) / math.sqrt(count), count - 1)
        low, high = value - half, value + half
    mismatch = float(torch.cat(prior).double().mean())
    said = (
        f"{round(evaluations)} evaluations a picture",
        *notes,
        f"prior mismatch at most {mismatch:.2g} bits/dim",
    )
    counts = (round(evaluations), dimensions, mismatch, dequantization)
    return BitsEstimate(name, value, low, high, 0, count, "bits/dim", said, *counts)


def _refuse_other_spaces(model: Model, image: Tensor) -> None:
    """A reordering of the numbers keeps densities; nothing else is known to."""
    if image.ndim != 4:
        raise InvalidInput(f"pictures are (B, C, H, W), and these {tuple(image.shape)}", where="image")
    if not _reorders(model.space, image):
        raise InvalidInput(
            "a model of latents gives no bits a dimension of pictures, for its decoder is not exact",
            where="space",
            do="compare pictures instead, by frechet",
        )
    model.space.shape(*image.shape[2:])


def _reorders(space: Space, image: Tensor) -> bool:
    probe = torch.linspace(-1, 1, image[0].numel(), device=image.device).view(1, *image.shape[1:])
    x = space.encode(probe)
    return x.numel() == probe.numel() and bool(torch.equal(x.flatten().sort().values, probe.flatten()))
