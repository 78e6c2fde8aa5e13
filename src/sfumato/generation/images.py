"""Generated pictures, each with the recipe that makes it again."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Images:
    """Generated pictures.

    Args:
        tensor: (count, C, H, W), float32 on the CPU, in [-1, 1].
        recipes: for each picture, plain data from which it can be made again.
        film: (count, frames, C, H, W) when asked for: each picture appearing out of noise.
    """

    tensor: Tensor
    recipes: tuple[dict[str, Any], ...]
    film: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def images(self) -> list[Image]:
        """The pictures, 8 bits a channel."""
        return [to_image(picture) for picture in self.tensor]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return tuple(recipe["seed"] for recipe in self.recipes)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the first picture."""
        return self.recipes[0]


def to_image(picture: Tensor) -> Image:
    """One picture (C, H, W) in [-1, 1] as 8-bit grey (1 channel), colour (3) or colour with alpha (4)."""
    from PIL import Image

    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(picture.shape[0])
    if mode is None:
        raise InvalidInput(f"{picture.shape[0]} channels are not a picture", where="space")
    bytes_ = ((picture.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    bytes_ = bytes_.permute(1, 2, 0).contiguous()
    data = ctypes.string_at(bytes_.data_ptr(), bytes_.numel())
    return Image.frombytes(mode, (picture.shape[2], picture.shape[1]), data)
