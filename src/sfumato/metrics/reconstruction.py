"""Reconstruction: how near to real pictures an autoencoder brings them back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.alone import Coder
from sfumato.core.errors import InvalidInput, MissingExtra
from sfumato.data.item import Batch
from sfumato.metrics.estimate import Estimate, half_width
from sfumato.metrics.features import as_bytes
from sfumato.model import Model
from sfumato.networks.perceptual import Perceptual

_WINDOW, _SIGMA = 11, 1.5


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, a picture: 10 log10(255² / mean squared error of the bytes).

    Pictures of the same bytes have that of pictures with one byte off by one, so that means stay finite.

    Args:
        made: (B, 1 or 3, H, W) in [-1, 1].
        real: of its shape.

    Returns:
        (B,), float64.
    """
    one, other = _pair(made, real)
    error = (one - other).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp_min(1 / made[0].numel()))


def ssim(made: Tensor, real: Tensor) -> Tensor:
    """Structural similarity, a picture: mean over all windows inside it and over channels.

        (2 μx μy + c1) (2 σxy + c2) / ((μx² + μy² + c1) (σx² + σy² + c2))

    with Gaussian windows of 11 x 11 pixels and standard deviation 1.5, c1 = (.01 · 255)², c2 = (.03 · 255)².

    Wang, Bovik, Sheikh & Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", equation 13.

    Args:
        made: (B, 1 or 3, H, W) in [-1, 1], sides from 11.
        real: of its shape.

    Returns:
        (B,), float64.
    """
    if min(made.shape[2:]) < _WINDOW:
        raise InvalidInput(f"windows of {_WINDOW} pixels do not fit {tuple(made.shape)}", where="ssim")
    one, other = _pair(made, real)
    places = torch.arange(_WINDOW, dtype=torch.float64, device=made.device) - _WINDOW // 2
    weights = torch.exp(-((places / _SIGMA) ** 2) / 2)
    weights = weights / weights.sum()

    def mean(value: Tensor) -> Tensor:
        flat = value.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

    mx, my, c1, c2 = mean(one), mean(other), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    vx, vy, both = mean(one * one) - mx**2, mean(other * other) - my**2, mean(one * other) - mx * my
    found = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return found.view(len(made), -1).mean(1)


@torch.no_grad()
def reconstruction(
    model: Model,
    data: Iterable[Batch],
    *,
    seed: int = 0,
    perceptual: Perceptual | bool | None = None,
) -> tuple[Estimate, ...]:
    """PSNR, SSIM and perceptual distance of pictures and what an autoencoder gives back of them.

    Latents are the posterior's means, nothing is drawn. Numbers are means over pictures with 95 % intervals;
    pictures are rounded to bytes first.

    Args:
        model: an autoencoder, or a model whose space has one.
        data: batches of pictures in [-1, 1].
        seed: plays no part, as nothing is drawn.
        perceptual: the distance; None for the packaged one where it is installed, False for none.

    Raises:
        InvalidInput: a model without an autoencoder, no pictures, or pictures it does not take.
        NotFinite: what is given back holds NaN or infinity.
    """
    if not isinstance(model.denoiser, Coder) and getattr(model.space, "autoencoder", None) is None:
        raise InvalidInput("the model gives back all pictures exactly: it has no autoencoder", where="model")
    distance = _distance(model, perceptual)
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "perceptual": []}
    for batch in data:
        image = batch.image.to(model.device)
        if isinstance(model.denoiser, Coder):
            made = model.denoiser.reconstruct(image).clamp(-1, 1)
        else:
            made = model.space.decode(model.space.encode(image))
        found["psnr"].append(psnr(made, image))
        found["ssim"].append(ssim(made, image))
        if distance is not None:
            pair = (as_bytes(each) / 127.5 - 1 for each in (made, image))
            found["perceptual"].append(distance(*pair).double())
    if not found["psnr"]:
        raise InvalidInput("there are no pictures", where="data")
    names = {"psnr": "bytes", "ssim": "bytes", "perceptual": distance.name if distance is not None else ""}
    return tuple(_estimate(name, torch.cat(rows), names[name]) for name, rows in found.items() if rows)


def _estimate(name: str, values: Tensor, features: str) -> Estimate:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Estimate(name, mean, None, None, count, count, features)
    half = half_width(float(values.std()) / count**0.5, count - 1)
    return Estimate(name, mean, mean - half, mean + half, count, count, features)


def _distance(model: Model, perceptual: Perceptual | bool | None) -> Perceptual | None:
    if isinstance(perceptual, Perceptual):
        return perceptual.to(model.device)
    if perceptual is False:
        return None
    try:
        return Perceptual.pretrained().to(model.device)
    except MissingExtra:
        if perceptual:
            raise
        return None


def _pair(made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    if made.shape != real.shape:
        raise InvalidInput(f"{tuple(made.shape)} and {tuple(real.shape)} do not compare", where="pictures")
    # Grey pictures come back as three channels alike, of which one says it all.
    return tuple(as_bytes(each)[:, : each.shape[1]].double() for each in (made, real))  # type: ignore[return-value]
