"""Edits: given pictures are changed while a model is walked, or the walk itself is another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.guidance import Guidance
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import Plan, ReverseProcess
from sfumato.core.sampler import Sampler


@dataclass(frozen=True)
class Canvas:
    """Pictures to be changed, and how: what an edit of given pictures comes down to.

    A walk begins at the pictures under noise (`begin`); places that may not change stay what they are all the
    way down (`blend`), and where not a pixel may change it comes out as it went in (`finish`).

    Args:
        image: (R, C, H, W) in [-1, 1], one for all pictures made or one for each.
        change: (R, 1, H, W), 1 where it may change, 0 where it may not, between them in a band that is mixed;
            None where all may.
        strength: how much of the walk is walked, above 0 to 1: at 1 from noise alone.
    """

    image: Tensor
    change: Tensor | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InvalidInput(
                f"{self.strength} is no strength", where="strength", do="give above 0 (nothing changes) to 1"
            )

    def padded(self, step: int) -> Canvas:
        """Continued on the right and below, by its last pixels, to sides that divide by `step`."""
        height, width = self.image.shape[2:]
        rim = (0, -width % step, 0, -height % step)
        change = None if self.change is None else F.pad(self.change, rim, "replicate")
        return replace(self, image=F.pad(self.image, rim, "replicate"), change=change)

    def rows(self, part: slice) -> Canvas:
        """Those of some of the pictures made."""
        if len(self.image) == 1:
            return self
        change = self.change if self.change is None or len(self.change) == 1 else self.change[part]
        return replace(self, image=self.image[part], change=change)

    def walked(self, steps: int) -> int:
        """How many of so many steps are walked: ⌊strength · steps⌋, at least one.

        Raises:
            InvalidInput: it is none.
        """
        walked = math.floor(self.strength * steps + 1e-9)
        if walked < 1:
            raise InvalidInput(
                f"{self.strength:g} of {steps} steps is not one", where="strength", do="more of either"
            )
        return walked

    def begin(self, known: Tensor, path: Process, times: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Where the walk starts, x (B, ..), and the times (n + 1,) that are left of it.

        Of N steps the last are walked, from x_t = alpha known + sigma eps (SDEdit: Meng et al.
        2022, arXiv:2108.01073), eps being the noise a picture of that seed is made from without an edit. A
        part made anew at strength 1 begins from noise alone: what was there is to be forgotten.

        Args:
            known: the pictures in the model's space, (B, ..).
            path: what is walked.
            times: of the whole walk, (N + 1,).
            noise: one seed a row.
        """
        steps = len(times) - 1
        left = times[steps - self.walked(steps) :]
        if self.change is not None and self.strength == 1:
            return path.prior(known.shape, noise, float(left[0])).to(known), left
        level = path(float(left[0]))
        eps = noise.randn(known.shape, "prior").to(known)
        return torch.add(level.alpha * known, eps, alpha=level.sigma), left

    def blend(self, denoiser: Denoiser, known: Tensor) -> Denoiser:
        """The denoiser, which says of places that may not change what is known of them.

        A place of the model's space may change if one of its pixels may. Walked without noise this is the
        replacement of x by the known picture under the noise it began with.
        """
        if self.change is None:
            return denoiser
        free = F.adaptive_max_pool2d(self.change, known.shape[2:]).to(known) > 0

        def blended(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            x0, variance = denoiser(x, level, condition)
            return Denoised(torch.where(free, x0, known.to(x0)), variance)

        return blended

    def finish(self, image: Tensor) -> Tensor:
        """Pictures (B, C, H, W) made, laid into those given; where nothing may change to the last bit."""
        if self.change is None:
            return image
        change, given = self.change.to(image), self.image.to(image)
        return torch.where(change > 0, torch.lerp(given.expand_as(image), image, change), given)


@dataclass(frozen=True)
class Scene:
    """A batch about to be walked, as an edit sees it.

    Args:
        model: what is walked.
        said: what it is told, one value a picture, by input.
        condition: what its conditioner makes of that, a row a picture.
        seeds: one a picture.
        size: (height, width) in pixels of what is walked.
        shape: (C, h, w) of one x.
        path: the process walked along.
        times: of the walk, (N + 1,).
        guidance: applied in order.
        part: which of all the pictures asked for they are.
    """

    model: Any
    said: Mapping[str, Sequence[Any]]
    condition: Condition
    seeds: Sequence[int]
    size: tuple[int, int]
    shape: tuple[int, ...]
    path: Process
    times: Tensor
    guidance: Sequence[Guidance] = ()
    part: slice = field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.seeds)

    def time(self, fraction: float) -> float:
        """Where the walk is after a fraction of its steps, rounded down to a whole one."""
        return float(self.times[math.floor(fraction * (len(self.times) - 1) + 1e-9)])

    def between(self, start: float, end: float) -> Callable[[Level[float]], bool]:
        """Whether a level lies in a part of the walk, said in fractions of its steps.

        It does from the level that the part's first step begins with up to, but not with, that of the first
        step after it; so a sampler may ask at whatever levels it likes, and nobody counts steps.
        """
        first, last = self.time(start), self.time(end)
        low = self.path(first).log_snr if start > 0 else -math.inf
        high = self.path(last).log_snr
        whole, nothing = last == float(self.times[-1]), not last < first

        def lies(level: Level[float]) -> bool:
            return not nothing and low <= level.log_snr and (whole or level.log_snr < high)

        return lies


@dataclass(frozen=True)
class Start:
    """A walk about to begin.

    Args:
        reverse: what is walked, guidance included.
        x: where it starts, (B, ..).
        times: what is left of it, (n + 1,).
        sampler: how.
        null: what guidance steers away from.
        guided: the guided denoiser of another null; one that heeds the level may choose among several. What a
            canvas keeps is in `reverse` alone.
    """

    reverse: ReverseProcess
    x: Tensor
    times: Tensor
    sampler: Sampler
    null: Condition
    guided: Callable[[Condition], Denoiser]


@dataclass(frozen=True)
class Turn:
    """What an edit makes of a walk: what it does not say stays as it is.

    It is made for each batch, and once more to measure the memory that `plan` and `guidance` take: long work
    belongs into `begin`.

    Args:
        plan: hooks by level.
        guidance: put around all other guidance.
        sampler: the sampler → one in its place. Memory of a walk that it keeps is made in its `init`.
        begin: another start: an x of its own, a denoiser with other nulls.
    """

    plan: Plan | None = None
    guidance: Guidance | None = None
    sampler: Callable[[Sampler], Sampler] | None = None
    begin: Callable[[Start], Start] | None = None


class Edit(Protocol):
    """What `generate` takes as an edit: settings that offer one or both of two methods.

    `canvas(channels, size) → Canvas`: pictures are given, with so many channels, cut and scaled to (height,
    width) if it is said; `turn(scene) → Turn`: the walk is another. Both raise InvalidInput where settings,
    pictures and words do not fit. An edit whose `together` is true has all its pictures walked in one batch.
    """


def feathered(change: Tensor, pixels: int) -> Tensor:
    """A mask (R, 1, H, W) of ones and zeros, rising from 0 to 1 over so many pixels inside the ones.

    The zeros stay zeros: what is kept is kept exactly, and the border is mixed within what may change.
    """
    total, eaten = change.clone(), change
    for _ in range(pixels):
        # The edge of the picture is no border: max pooling pads with -∞.
        eaten = -F.max_pool2d(-eaten, 3, stride=1, padding=1)
        total += eaten
    return total / (pixels + 1)
