"""Image: a picture that is to be turned into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.beside import Beside, rows_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.space import Space
from sfumato.data.picture import picture_of


@dataclass(eq=False, repr=False)
class Image(Beside):
    """A given picture beside x in the condition's channels: InstructPix2Pix, and any paired translation.

    It is brought to the model's space: latents (the posterior's mean, as the autoencoder makes them), or in
    pixel space the picture itself. The null is zeros, no picture; a negative prompt keeps the picture.

    Brooks, Holynski & Efros 2022, "InstructPix2Pix: Learning to Follow Image Editing Instructions",
    arXiv:2211.09800, section 3.2; Saharia et al. 2021, "Palette: Image-to-Image Diffusion Models",
    arXiv:2111.05826.

    Args:
        scaled: latents are scaled and shifted as x is; InstructPix2Pix's are not.
        colors: channels of the picture (1 for grey) where x is pixels of another number; as the space's
            pictures if 0.
    """

    scaled: bool = False
    colors: int = 0

    inputs = kept = ("image", "size")
    pictures = ("image",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colors not in (0, 1, 3, 4):
            raise InvalidInput(f"{self.colors} channels are none of a picture", where="image.colors")

    def bind(self, space: Space) -> None:
        """Where pictures are encoded: the model's space."""
        super().bind(space)
        if self.colors and hasattr(space, "scale") and self.colors != space.image_channels:
            raise InvalidInput("an autoencoder takes its own number of channels", where="image.colors")

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One picture for all rows or a list with one a row, None for no picture → channels (count, ·, h, w).

        A picture is a path, a PIL image, or a tensor (C, H, W) in [-1, 1], of the shape of what is made of it
        and where it is of another size, resized.
        """
        rows = [
            None if row is None else self._read(row) for row in rows_of(count, inputs.get("image"), "image")
        ]
        given = [row for row in rows if row is not None]
        if not given:
            raise InvalidInput(
                "this model turns a picture into another and was given none", where="image", do="image=PATH"
            )
        fitted, size = self._fitted(given, inputs, "bicubic")
        seen = self._seen([each.clamp(-1, 1) for each in fitted], size)
        if len(given) == count:
            return Condition(channels=seen)
        there = torch.tensor([row is not None for row in rows], device=seen.device)
        channels = seen.new_zeros(count, *seen.shape[1:])
        channels[there] = seen
        return Condition(channels=channels)

    def null(self, condition: Condition) -> Condition:
        """Zeros: no picture."""
        assert condition.channels is not None
        return Condition(channels=torch.zeros_like(condition.channels))

    def _read(self, given: Any) -> Tensor:
        return picture_of(given, self.colors or self.space.image_channels, "image")

    def _seen(self, pictures: list[Tensor], size: tuple[int, int]) -> Tensor:
        space: Any = self.space
        if not hasattr(space, "scale"):
            ratio = size[0] // self._places(*size)[0]
            return F.pixel_unshuffle(torch.stack(pictures).to(self.device_of.device), ratio)
        x = self._encoded(pictures)
        return x if self.scaled else x / space.scale + space.shift
