"""Semantic map: which class each pixel of the picture is to belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioners.beside import Beside, rows_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.class_map import class_numbers


@dataclass(eq=False, repr=False)
class SemanticMap(Beside):
    """A map of class numbers beside x in the condition's channels.

    One-hot, halved bilinearly as often as x is smaller than the picture, and mixed into a few channels that
    are learnt, as in latent diffusion; or, without mixing, one-hot of the nearest pixel. Zeros say no class,
    which is the null; a negative prompt keeps the map.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    section 4.3.2.

    Args:
        classes: how many; class numbers are 0 to classes - 1.
        channels: that classes are mixed into; 0 for one channel a class.
        ignored: the number that means no class.

    Raises:
        InvalidInput: settings that are none; when told, other class numbers.
    """

    classes: int = 182
    channels: int = 3
    ignored: int = 255

    inputs = kept = ("semantic_map", "size")
    pictures = ("semantic_map",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1 or self.channels < 0 or 0 <= self.ignored < self.classes:
            raise InvalidInput("sizes or numbers that are none", where="semantic_map")
        # The name of latent diffusion's files.
        self.channel_mapper = nn.Conv2d(self.classes, self.channels, 1, bias=False) if self.channels else None

    @property
    def shares(self) -> dict[str, int | None]:
        """As many channels as they are mixed into."""
        return {"channels": self.channels or self.classes}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One map for all rows or a list with one a row, None for no class anywhere → channels.

        A map is a PNG (its palette's or grey numbers), such a PIL image, or a tensor (H, W) of whole numbers,
        of the shape of the picture that is made; of one of another size the nearest pixels are taken.
        """
        rows = rows_of(count, inputs.get("semantic_map"), "semantic_map")
        given = [None if row is None else self._read(row) for row in rows]
        maps = [each for each in given if each is not None]
        if not maps:
            raise InvalidInput(
                "this model is told a semantic map and was given none",
                where="semantic_map",
                do="semantic_map=PATH",
            )
        maps, size = self._fitted(maps, inputs, "nearest")
        nowhere = torch.full(size, self.ignored)
        told = iter(maps)
        numbers = torch.stack([nowhere if each is None else next(told) for each in given])
        return Condition(channels=self._told(numbers.to(self.device_of.device), self._places(*size)))

    def null(self, condition: Condition) -> Condition:
        """No class anywhere."""
        assert condition.channels is not None
        return Condition(channels=torch.zeros_like(condition.channels))

    def _told(self, numbers: Tensor, size: tuple[int, int]) -> Tensor:
        if self.channel_mapper is None:
            near = F.interpolate(numbers[:, None].float(), size, mode="nearest")[:, 0].long()
            known = near != self.ignored
            one_hot = F.one_hot(near.where(known, torch.zeros_like(near)), self.classes) * known[..., None]
            return one_hot.movedim(-1, 1).float()
        # Mixing and resizing are linear and commute: mixed first, no map of all classes is ever held.
        table = F.pad(self.channel_mapper.weight[:, :, 0, 0].T, (0, 0, 0, 1))
        known = numbers != self.ignored
        mixed = F.embedding(numbers.where(known, torch.full_like(numbers, self.classes)), table).movedim(
            -1, 1
        )
        while mixed.shape[2] >= 2 * size[0] and mixed.shape[3] >= 2 * size[1]:
            mixed = F.interpolate(mixed, scale_factor=0.5, mode="bilinear")
        return mixed if mixed.shape[2:] == size else F.interpolate(mixed, size, mode="bilinear")

    def _read(self, given: Any) -> Tensor:
        """(H, W) int64, every number a class or the ignored."""
        numbers = class_numbers(given, "semantic_map")
        wrong = numbers[(numbers != self.ignored) & ((numbers < 0) | (numbers >= self.classes))]
        if wrong.numel():
            raise InvalidInput(
                f"class {int(wrong[0])} of a model of {self.classes}",
                where="semantic_map",
                do=f"give 0 to {self.classes - 1}, or {self.ignored} for no class",
            )
        return numbers
