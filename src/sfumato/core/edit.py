"""Edits: given pictures are changed while a model is walked, all of them or a part."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.process import Process


@dataclass(frozen=True)
class Canvas:
    """Pictures to be changed, and how: every edit comes down to one.

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


class Edit(Protocol):
    """A change of given pictures: settings, and what they come down to."""

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The pictures read, of so many channels, cut and scaled to (height, width) if it is said.

        Raises:
            InvalidInput: something is no picture, or pictures do not fit each other.
        """
        ...


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
