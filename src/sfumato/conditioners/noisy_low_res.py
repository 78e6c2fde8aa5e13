"""Noisy low resolution: a small picture under some noise, and how much, for a model that makes it large."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.beside import Beside, asked_size, fitted, one_size, rows_of, values_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import MAX_SEED, Noise
from sfumato.core.process import Process
from sfumato.data.picture import picture_of
from sfumato.processes.betas import Betas


@dataclass(eq=False, repr=False)
class NoisyLowRes(Beside):
    """A small picture under noise of level k in the condition's channels, beside x, and k in its vector.

        alpha_k · low_res + sigma_k · n

    A model trained on all levels is robust to the faults of what made the small picture, and k says how far
    it may depart from it. Null keeps both.

    The noise n is that of the seed `noise_seed`, and where none is said of the picture itself: the same
    picture is told in the same way, alone, in a batch and with a guidance. While training, what is not said
    (level and seed) is drawn from torch's own generator, as dropout is.

    Defaults are those of Stable Diffusion's x4 upscaler, whose x are the small picture's own places (x of 4
    channels and this are 7); cascades of pixels stretch it, bilinearly, before it is noised.

    Ho, Saharia, Chan, Fleet, Norouzi & Salimans 2021, "Cascaded Diffusion Models for High Fidelity Image
    Generation", arXiv:2106.15282, section 4.2; Rombach et al. 2022, arXiv:2112.10752.

    Args:
        factor: how many places of x, along a side, one pixel of the picture is stretched to.
        colors: 3, or 1 for grey.
        process: where levels lie: k of its steps is at time (k + 1) / steps.
        level: k where none is said.
        most: no higher level is taken.
        levels: length of the vector, the network's `classes`; 0 where it is not told.

    Raises:
        InvalidInput: settings that are none; when told, no picture or another level.
    """

    factor: int = 1
    colors: int = 3
    # "Linear" in the released settings is linear in sqrt(β), as everywhere in latent diffusion.
    process: Process = field(default_factory=lambda: Betas("scaled_linear", start=1e-4, end=0.02))
    level: int = 20
    most: int = 350
    levels: int = 1000

    inputs = kept = ("low_res", "noise_level", "noise_seed", "size")
    pictures = ("low_res",)

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = getattr(self.process, "steps", None)
        if steps is None or not 0 <= self.level <= self.most < steps:
            raise InvalidInput("levels are steps of a discrete process, the default among them", where=_HERE)
        if self.factor < 1 or self.colors not in (1, 3) or (self.levels and self.levels <= self.most):
            raise InvalidInput("a factor, number of colours or of levels is none", where=_HERE)

    @property
    def shares(self) -> dict[str, int | None]:
        """The channels of the picture, and the level."""
        return {"channels": self.colors, **({"vector": self.levels} if self.levels else {})}

    def size_of(self, **inputs: Any) -> tuple[int, int] | None:
        """The size that the first picture is made: `factor` places of x a pixel."""
        given, step = super().size_of(**inputs), self.space.step
        ratio = self.factor * step // self._places(step, step)[0]
        return given and (given[0] * ratio, given[1] * ratio)

    def forward(self, count: int, **inputs: Any) -> Condition:
        """Pictures, levels and seeds, one for all rows or lists with one a row → channels and vector.

        A picture is a path, a PIL image, or a tensor (colors, h, w) in [-1, 1], resized where what is made of
        it is asked for in another size.
        """
        given = rows_of(count, inputs.get("low_res"), "low_res")
        if any(row is None for row in given):
            raise InvalidInput(
                "this model enlarges a picture and was given none", where="low_res", do="low_res=PATH"
            )
        pictures = [self._read(row) for row in given]
        size = asked_size(inputs)
        if size is not None and self._bound:
            high, wide = (side // self.factor for side in self._places(*size))
            step = self.space.step
            told = [fitted(each, (high, wide), "bicubic", "low_res", step).clamp(-1, 1) for each in pictures]
        else:
            told, _ = pictures, one_size(pictures, "low_res")
        asked = rows_of(count, inputs.get("noise_level"), "noise_level")
        levels = [self._drawn(self.most) if row is None else self._level(row) for row in asked]
        chosen = rows_of(count, inputs.get("noise_seed"), "noise_seed")
        seeds = [self._seed(*pair) for pair in zip(pictures, chosen, strict=True)]
        clean = torch.stack(told)
        if self.factor > 1:
            clean = F.interpolate(clean, scale_factor=self.factor, mode="bilinear")
        steps: int = self.process.steps
        at = self.process((torch.tensor(levels, dtype=torch.float64) + 1) / steps).like(clean)
        noisy = at.alpha * clean + at.sigma * Noise(seeds).randn_like(clean, "low_res")
        vector = F.one_hot(torch.tensor(levels), self.levels).float() if self.levels else None
        return Condition(channels=noisy, vector=vector).to(self.device_of.device)

    def check(self, **inputs: Any) -> None:
        """Refuse what is no picture, level or seed before any work."""
        super().check(**inputs)
        for row in values_of(inputs.get("noise_level")):
            self._level(row)
        for row in values_of(inputs.get("noise_seed")):
            _whole(row)

    def _read(self, given: Any) -> Tensor:
        return picture_of(given, self.colors, "low_res")

    def _drawn(self, most: int) -> int:
        return int(torch.randint(most, ())) if self.training and most else self.level

    def _level(self, given: Any) -> int:
        if type(given) is not int or not 0 <= given <= self.most:
            raise InvalidInput(
                f"{given!r} is no level", where="noise_level", do=f"give a whole number from 0 to {self.most}"
            )
        return given

    def _seed(self, picture: Tensor, given: Any) -> int:
        if given is not None:
            return _whole(given)
        if self.training:
            return int(torch.randint(MAX_SEED, ()))
        numbers = picture.contiguous().view(torch.uint8).flatten()
        digest = hashlib.sha256(bytes(numbers.tolist())).digest()
        return int.from_bytes(digest[:8], "little") & MAX_SEED


_HERE = "noisy_low_res"


def _whole(given: Any) -> int:
    if type(given) is not int or not 0 <= given <= MAX_SEED:
        raise InvalidInput(f"{given!r} is no whole number from 0 to 2^63 - 1", where="noise_seed")
    return given
