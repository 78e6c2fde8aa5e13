"""Moved: pictures of another data set, each several times over: elsewhere, turned, larger, mirrored."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.around import Around
from sfumato.data.item import Dataset, Item


@dataclass
class Moved(Around):
    """Another data set's pictures as they are, and then so many times moved, each told the same words.

    A model that knows by heart what picture belongs to a caption learns nothing of a hint that shows it; of
    moved pictures only the hint tells where they are. So it stands inside of `hinted`. How a picture is moved
    follows from its index alone, so that latents can be kept.

    Inputs that are places in the picture (boxes, masks) are not moved: leave them out.

    Args:
        data: the other data set.
        times: how often each picture is there, once as it is.
        scale: sizes are 2^-scale to 2^scale of the picture's.
        turn: the largest angle in degrees.
        shift: how far at most, in sides of the picture, right or left and up or down.
        mirrored: whether half of the moved pictures are.
        ground: what is seen beside the picture, in [-1, 1]: 1 is white.

    Raises:
        InvalidInput: settings that are none.
    """

    data: Dataset
    times: int = 4
    scale: float = 0.5
    turn: float = 20.0
    shift: float = 0.15
    mirrored: bool = True
    ground: float = 1.0

    def __post_init__(self) -> None:
        most = {"scale": 4, "turn": 180, "shift": 1}
        if self.times < 1 or not all(0 <= getattr(self, name) <= most[name] for name in most):
            raise InvalidInput(
                "times is a whole number from 1, scale 0 to 4, turn 0 to 180 and shift 0 to 1", where="moved"
            )

    def __len__(self) -> int:
        return self.times * len(self.data)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index: that of the other data set, as it is or moved."""
        turn, place = divmod(index, len(self.data))
        item = self.data.load(place, seed)
        return Item(self._moved(item.image, index), item.inputs) if turn else item

    def bucket_of(self, index: int) -> int:
        """The other's bucket of the item."""
        return super().bucket_of(index % len(self.data))

    def _transparent(self, index: int, seed: int = 0) -> Tensor:
        """A picture with its transparency, (4, H, W) in [-1, 1]; what is beside it is transparent."""
        turn, place = divmod(index, len(self.data))
        own: Tensor = self.data.transparent(place, seed)  # type: ignore[attr-defined]
        if not turn:
            return own
        return torch.cat((self._moved(own[:3], index), _sampled(own[3:], self._frame(index), -1.0)))

    def _moved(self, image: Tensor, index: int) -> Tensor:
        return _sampled(image, self._frame(index), self.ground)

    def _frame(self, index: int) -> Tensor:
        """Where in the picture each place of the moved one is: an affine map (2, 3) of [-1, 1]²."""
        chance = random.Random(f"moved:{index}")
        zoom = 2 ** chance.uniform(-self.scale, self.scale)
        angle = math.radians(chance.uniform(-self.turn, self.turn))
        across, down = (2 * chance.uniform(-self.shift, self.shift) for _ in range(2))
        flip = -1.0 if self.mirrored and chance.random() < 0.5 else 1.0
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        rows = ((flip * cos, flip * sin), (-sin, cos))
        return torch.tensor([[a, b, -a * across - b * down] for a, b in rows])


def _sampled(image: Tensor, frame: Tensor, ground: float) -> Tensor:
    """A picture (C, H, W) seen through a frame, between its pixels by bilinear means of twice as many."""
    channels, height, width = image.shape
    grid = F.affine_grid(frame[None], [1, channels, 2 * height, 2 * width], align_corners=False)
    seen = F.grid_sample(image[None] - ground, grid, align_corners=False)
    return (F.avg_pool2d(seen, 2)[0] + ground).clamp(-1, 1)
