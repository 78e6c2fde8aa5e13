"""Image to image: a picture made over, more or less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from sfumato.conditioners.beside import fitted
from sfumato.core.edit import Canvas, Scene, Start, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.sampler import sample
from sfumato.data.picture import masks, pictures


@dataclass(frozen=True)
class ImageToImage:
    """SDEdit: put a picture under as much noise as is to be made over, and walk from there.

        x_t = alpha_t · picture + sigma_t · eps,    then ⌊strength · N⌋ of the walk's N steps down

    Little strength keeps the picture and touches up detail; at .5 to .8 shapes and colours stay, what they
    show follows what the model is told; at 1 next to nothing stays. Coarse strokes painted by hand become a
    picture at about .5, with `repeats` 3: each puts what the last one made under fresh noise and walks again
    (in the model's space; the repeats before the last are not observed). The paper walks with noise, as the
    sampler `ancestral` does, or `euler_maruyama` along `ve`.

    Where the picture is kept it is that of each level all the way down; the authors' code composes it with
    the noise of the level before, one step too much.

    Meng, He, Song, Song, Wu, Zhu & Ermon 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic
    Differential Equations", arXiv:2108.01073, algorithms 1 to 3.

    Args:
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list with one for each picture made.
        strength: the part of the walk that is walked, above 0 to 1.
        keep: likewise, in grey; white (above half) where the picture stays as it is, to the last bit. Nothing
            is kept if it is not said.
        repeats: how often it is made over, K.

    Raises:
        InvalidInput: repeats below 1; else as pictures are read.
    """

    image: Any = None
    strength: float = 0.6
    keep: Any = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= 100:
            raise InvalidInput(f"{self.repeats} is not from 1 to 100", where="image_to_image.repeats")

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The picture, of which all that is not kept may change."""
        image = pictures(self.image, channels, "image", size)
        if self.keep is None:
            return Canvas(image, None, self.strength)
        keep = masks(self.keep, "keep", size)
        keep = fitted(keep, (image.shape[2], image.shape[3]), "nearest", "keep", what="mask")
        return Canvas(image, 1 - keep, self.strength)

    def turn(self, scene: Scene) -> Turn:
        """All walks but the last, each from what came of the one before."""
        return Turn(begin=self._again) if self.repeats > 1 else Turn()

    def _again(self, start: Start) -> Start:
        t = float(start.times[0])
        level = start.reverse.level(t)
        reverse, x = start.reverse, start.x
        for number in range(1, self.repeats):
            made = sample(start.sampler, reverse, x, start.times)
            # The numbers of a walk are its own, though its times are those of the walks before.
            reverse = replace(start.reverse, turn=f"{start.reverse.turn}repeat {number} ")
            eps = reverse.randn_like(made, t, "start")
            x = torch.add(level.alpha * made, eps, alpha=level.sigma)
        return replace(start, reverse=reverse, x=x)
