"""Windows: pictures larger than those a model was trained on, by overlapping windows of that size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level

Spot = tuple[int, int]
"""Top and left of a window."""


@dataclass(frozen=True)
class Windows:
    """Estimates of overlapping windows of the training size, averaged where they meet.

        x0 = Σ w_i · x0(window i of x) / Σ w_i

    Windows lie evenly, all of one size, and their weights fall towards their edges, smoothly to almost
    nothing, so that no edge shows. What is told by maps (draft, channels, residuals) is cut as x is; all else
    is told every window alike, so that a prompt fills all of the picture. An x that is no larger than a
    window is left alone. Memory is that of `batch` windows, whatever the size.

    Guidances that take the null must stand around this one: name this one first.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    section 4.3.2 (convolutional sampling); Bar-Tal, Yariv, Lipman & Dekel 2023, "MultiDiffusion: Fusing
    Diffusion Paths for Controlled Image Generation", arXiv:2302.08113, equation 5, of which this is the
    average taken in every estimate.

    Args:
        size: side of a window in places of x: the training size.
        stride: the most places from one window to the next; half of `size` or less leaves no trace of them.
        batch: windows evaluated at once.

    Raises:
        InvalidInput: settings that are none; when asked, maps that cannot be cut as x is.
    """

    size: int = 64
    stride: int = 32
    batch: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch < 1:
            raise InvalidInput("windows are of a place or more, one or more at once", where="windows")
        if not 1 <= self.stride <= self.size:
            raise InvalidInput(f"{self.stride} is not from 1 to {self.size}", where="windows.stride")

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The denoiser of larger x."""

        def estimate(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            sides = (min(x.shape[-2], self.size), min(x.shape[-1], self.size))
            if sides == tuple(x.shape[-2:]):
                return denoiser(x, level, condition)
            lines = [self.starts(length) for length in x.shape[-2:]]
            spots = [(top, left) for top in lines[0] for left in lines[1]]
            bells = [_bell(side, x) for side in sides]
            weight = bells[0][:, None] * bells[1]
            total = x.new_zeros(x.shape[-2:], dtype=weight.dtype)
            for spot in spots:
                _cut(total, spot, sides).add_(weight)
            sums: list[Tensor | None] = [None, None]
            for first in range(0, len(spots), self.batch):
                group = spots[first : first + self.batch]
                pieces = torch.cat([_cut(x, spot, sides) for spot in group])
                told = _told(condition, x, group, sides)
                said = denoiser(pieces, _repeated(level, len(group)), told)
                for number, values in enumerate(said):
                    if values is not None:
                        sums[number] = _add(sums[number], values, x, weight, group)
            assert sums[0] is not None, "there are windows"
            x0, variance = (None if each is None else (each / total).to(x.dtype) for each in sums)
            assert x0 is not None
            return Denoised(x0, variance)

        return estimate

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side of so many places."""
        if length <= self.size:
            return [0]
        gaps = -(-(length - self.size) // self.stride)
        return [round(i * (length - self.size) / gaps) for i in range(gaps + 1)]


def _bell(side: int, x: Tensor) -> Tensor:
    """Weights along a side: sin², from almost nothing at the edges to 1 in the middle."""
    wide = torch.promote_types(x.dtype, torch.float32)
    at = (torch.arange(side, device=x.device, dtype=wide) + 0.5) / side
    # Never so little that numbers seen by one window alone lose digits in the division.
    return torch.sin(torch.pi * at).square().clamp_min(1e-3)


def _cut(values: Tensor, spot: Spot, sides: tuple[int, int]) -> Tensor:
    return values[..., spot[0] : spot[0] + sides[0], spot[1] : spot[1] + sides[1]]


def _add(total: Tensor | None, values: Tensor, x: Tensor, weight: Tensor, group: list[Spot]) -> Tensor:
    """The sum, with the windows' values (n · B, C, h, w) by their weight at their places."""
    if total is None:
        total = values.new_zeros((len(x), values.shape[1], *x.shape[-2:]), dtype=weight.dtype)
    for spot, piece in zip(group, values.chunk(len(group)), strict=True):
        _cut(total, spot, (weight.shape[0], weight.shape[1])).add_(piece * weight)
    return total


def _repeated(level: Level[Any], times: int) -> Level[Any]:
    if not (isinstance(level.alpha, Tensor) and level.alpha.ndim):
        return level
    return Level(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in level))


def _told(condition: Condition, x: Tensor, group: list[Spot], sides: tuple[int, int]) -> Condition:
    """What every window is told: its part of the maps, and all of the rest."""

    def parts(maps: Tensor) -> Tensor:
        cuts = []
        for spot in group:
            place = []
            for begin, side, whole, length in zip(spot, sides, x.shape[-2:], maps.shape[-2:], strict=True):
                if begin * length % whole or side * length % whole:
                    raise InvalidInput(
                        f"a map of {maps.shape[-1]} x {maps.shape[-2]} beside one of "
                        f"{x.shape[-1]} x {x.shape[-2]} cannot be cut into windows",
                        where="windows",
                    )
                place.append((begin * length // whole, side * length // whole))
            (top, height), (left, width) = place
            cuts.append(_cut(maps, (top, left), (height, width)))
        return torch.cat(cuts)

    if not len(condition):
        return condition
    full = condition.tile(len(x))
    bare = replace(full, draft=None, channels=None, residuals=())
    return replace(
        bare.tile(len(x) * len(group)),
        draft=None if full.draft is None else parts(full.draft),
        channels=None if full.channels is None else parts(full.channels),
        residuals=tuple(parts(each) for each in full.residuals),
    )
