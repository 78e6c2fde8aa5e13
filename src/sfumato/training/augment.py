"""Augmentation that does not leak: pictures are changed, and the network is told how."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.augmented import LABELS
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise

_ANALYSIS = (0.02674875741081, -0.01686411844287, -0.07822326652899, 0.26686411844288, 0.60294901823636)
_SYNTHESIS = (-0.09127176311425, -0.05754352622850, 0.59127176311425, 1.11508705245700)
"""The low-pass halves of the biorthogonal 9/7 wavelet, up to their middle: what the second makes twice as
fine the first brings back exactly (Cohen, Daubechies & Feauveau 1992)."""
_REACH = len(_ANALYSIS) - 1


@dataclass(frozen=True)
class Augment:
    """Flips, scalings, turns, stretches and shifts of pictures, each by chance, told as nine numbers.

        labels = (xflip, yflip, scale n, cos r - 1, sin r, stretch n · (cos a, sin a), shift n, shift n)

    with n normal numbers and 0 for what was not done, so that zeros, which a model with the conditioner
    `augmented` is told when it generates, mean a picture as the data have them. In this order: mirror, turn
    upside down; about the centre scale by 2^(scale · n), turn counter-clockwise by r, stretch by
    2^(anisotropy · n) along the axis at a and shrink as much across it; shift right and down by
    translate · n sides. Outside their frame pictures go on mirrored.

    Karras, Aittala, Aila & Laine 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv:2206.00364, appendix F.2 and table 6. As there, half of all pictures are mirrored whatever p. Three
    things differ from the published code: pictures are sampled at twice their size between the symmetric
    filters of a biorthogonal wavelet rather than sym6, so that quarter turns and whole shifts are exact; the
    mirroring outside never ends in black; and axes a lie in half a circle, for on the whole one, with the
    same pictures, a stretch and a squash share their label.

    Args:
        p: chance of each (.12 to .15; 0 changes nothing at all).
        xflip: whether pictures are mirrored: half of all, unless p is 0.
        yflip: whether they are turned upside down, half of those chosen.
        scale: standard deviation of log2 of the factor; 0 for none.
        rotate: the largest angle in half turns; 0 for none.
        anisotropy: standard deviation of log2 of the factor; 0 for none. Half of the axes are level.
        translate: standard deviation in sides of the picture; 0 for none.
    """

    p: float = 0.12
    xflip: bool = True
    yflip: bool = True
    scale: float = 0.2
    rotate: float = 1.0
    anisotropy: float = 0.2
    translate: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InvalidInput(f"{self.p} is no chance", where="augment.p", do="give 0 to 1")
        for name in ("scale", "rotate", "anisotropy", "translate"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InvalidInput(f"{value} is no range", where=f"augment.{name}", do="give 0 or more")

    def __call__(self, images: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), one seed of `noise` a row → the changed ones, and their labels (B, 9)."""
        labels = self.labels(noise).to(images.device)
        return self.apply(images, labels), labels

    def labels(self, noise: Noise) -> Tensor:
        """What is to be done to each row: (B, 9) float32 on the CPU."""
        count = len(noise)
        coins = noise.uniform((count, 10), "augment").cpu()
        normal = noise.randn((count, 4), "augment size").double().cpu()
        wanted = (self.yflip, self.scale > 0, self.rotate > 0, self.anisotropy > 0, self.translate > 0)
        on = ((coins[:, :5] < self.p) & torch.tensor(wanted)).double()
        mirrored = (coins[:, 5] < 0.5).double() * float(self.xflip and self.p > 0)
        angle = (2 * coins[:, 7] - 1) * math.pi * self.rotate * on[:, 2]
        axis = (coins[:, 8] - 0.5) * math.pi * (coins[:, 9] < 0.5)
        stretch = normal[:, 1] * on[:, 3]
        columns = (
            mirrored,
            on[:, 0] * (coins[:, 6] < 0.5),
            normal[:, 0] * on[:, 1],
            angle.cos() - 1,
            angle.sin(),
            stretch * axis.cos(),
            stretch * axis.sin(),
            normal[:, 2] * on[:, 4],
            normal[:, 3] * on[:, 4],
        )
        return torch.stack(columns, dim=1).float()

    def apply(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) changed as labels (B, 9) say; a row of zeros comes back bit for bit."""
        if images.ndim != 4 or labels.shape != (len(images), LABELS):
            raise InvalidInput(f"images {tuple(images.shape)}, labels {tuple(labels.shape)}", where="augment")
        flip = labels[:, :2, None, None, None] > 0.5
        images = torch.where(flip[:, 0], images.flip(3), images)
        images = torch.where(flip[:, 1], images.flip(2), images)
        moved = labels[:, 2:].any(dim=1)
        if not bool(moved.any()):
            return images
        inverse = self._inverse(labels[moved].double(), images.shape[2], images.shape[3])
        images = images.clone()
        images[moved] = resample(images[moved], inverse)
        return images

    def _inverse(self, labels: Tensor, height: int, width: int) -> Tensor:
        """From places in the new picture to those in the old, (B, 2, 3), in pixels right of and below the
        centre.
        """
        _, _, size, cosine, sine, along, up, right, down = labels.unbind(1)
        turn = _matrix(cosine + 1, -sine, sine, cosine + 1)
        # The axis is upwards in half a circle, the sign of n goes with its label.
        stretch = torch.hypot(along, up) * torch.where(along < 0, -1.0, 1.0)
        nonzero = torch.where(stretch == 0, 1.0, stretch)
        axis = torch.stack((torch.where(stretch == 0, 1.0, along / nonzero), -up / nonzero), dim=1)
        across = torch.stack((-axis[:, 1], axis[:, 0]), dim=1)
        factor = torch.exp2(self.anisotropy * stretch)[:, None, None]
        squeeze = _outer(axis) / factor + _outer(across) * factor
        linear = turn @ squeeze * torch.exp2(-self.scale * size)[:, None, None]
        shift = torch.stack((width * right, height * down), dim=1) * self.translate
        return torch.cat((linear, -linear @ shift[:, :, None]), dim=2)


def resample(images: Tensor, inverse: Tensor) -> Tensor:
    """Pictures seen through affine maps, free of aliasing, going on mirrored outside their frame.

    Twice as fine by the wavelet's one filter, sampled there by cubics, half as fine by the other.

    Args:
        images: (B, C, H, W).
        inverse: (B, 2, 3), from places in the new picture to those in the old, in pixels right of and below
            the centre.

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[2:]
    fine = _finer(height).to(images) @ images @ _finer(width).to(images).T
    # Places of the fine grid, its own centre the origin, with room for the filter on every side.
    rows, columns = (
        torch.arange(1 - side - _REACH, side + _REACH, dtype=inverse.dtype, device=inverse.device)
        for side in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack((x, y, torch.full_like(x, 2.0)), dim=-1)
    scale = inverse.new_tensor((max(width - 1, 1), max(height - 1, 1)))
    grid = torch.einsum("bij,hwj->bhwi", inverse, places) / scale
    seen = F.grid_sample(fine, grid.to(images), "bicubic", "reflection", align_corners=True)
    return _coarser(height).to(images) @ seen @ _coarser(width).to(images).T


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack((a, b, c, d), dim=1).view(-1, 2, 2)


def _outer(v: Tensor) -> Tensor:
    return v[:, :, None] * v[:, None, :]


@functools.lru_cache(maxsize=32)
def _finer(size: int) -> Tensor:
    """(2 size - 1, size): a line, mirrored about its outermost pixels, at twice as many places."""
    taps = [*_SYNTHESIS, *_SYNTHESIS[-2::-1]]
    matrix = torch.zeros(2 * size - 1, size, dtype=torch.float64)
    middle = len(_SYNTHESIS) - 1
    for place in range(2 * size - 1):
        for pixel in range((place - middle + 1) // 2, (place + middle) // 2 + 1):
            matrix[place, _mirrored(pixel, size)] += taps[place - 2 * pixel + middle]
    return matrix


@functools.lru_cache(maxsize=32)
def _coarser(size: int) -> Tensor:
    """(size, 2 size - 1 + 2 · 4): every second place of a line, smoothed."""
    taps = [*_ANALYSIS, *_ANALYSIS[-2::-1]]
    matrix = torch.zeros(size, 2 * size - 1 + 2 * _REACH, dtype=torch.float64)
    for pixel in range(size):
        matrix[pixel, 2 * pixel : 2 * pixel + len(taps)] = torch.tensor(taps, dtype=torch.float64)
    return matrix


def _mirrored(pixel: int, size: int) -> int:
    period = max(2 * (size - 1), 1)
    return min(pixel % period, -pixel % period)
