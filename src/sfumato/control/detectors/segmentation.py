"""Segmentation: which class each pixel belongs to, in colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.control.detectors.legends import legend
from sfumato.control.detectors.reading import colors, levels, map_of
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import to_image

_ROWS = 64
"""Rows of a picture compared with a legend at once."""


@dataclass(frozen=True)
class Segmentation:
    """A map of class numbers as a picture in which each class has its colour; `numbers` reads it back.

    Masks (n, H, W) bool are read as classes 1 to n in their order, the later over the earlier, and 0 where
    none is.

    Args:
        legend: "voc", of 256 classes of which 0 is black, any number of classes' first ones; or "ade20k", the
            150 that released controls know, of which 6 and 48 share a colour.
        ignored: the number that means no class, drawn black.

    Raises:
        InvalidInput: of a map, numbers beyond the legend.
        NotFound: no such legend.
    """

    legend: Literal["voc", "ade20k"] = "voc"
    ignored: int = 255

    def __post_init__(self) -> None:
        legend(self.legend)

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A map (H, W) of whole numbers, a PNG of one, or masks (n, H, W) → (3, H, W) in [-1, 1]."""
        if isinstance(given, Tensor) and given.dtype == torch.bool and given.ndim == 3:
            counts = torch.arange(1, len(given) + 1).view(-1, 1, 1)
            given = (given.cpu() * counts).amax(0)
        numbers, known = map_of(given, "segmentation", classes=True), legend(self.legend)
        told = numbers != self.ignored
        wrong = numbers[told & ((numbers < 0) | (numbers >= len(known)))]
        if wrong.numel():
            raise InvalidInput(
                f"class {int(wrong[0])} of a legend of {len(known)}",
                where="segmentation",
                do=f"give 0 to {len(known) - 1}, or {self.ignored} for no class",
            )
        drawn = known[numbers.where(told, torch.zeros_like(numbers))] * told[..., None]
        return to_image(drawn.movedim(-1, 0))

    def numbers(self, given: Any) -> Tensor:
        """A picture of this legend → its class numbers (H, W), by the nearest colour."""
        bytes_ = torch.from_numpy(levels(colors(given, "segmentation"))).float()
        known = legend(self.legend).float()
        found = [
            torch.cdist(rows, known.expand(len(rows), -1, -1)).argmin(2)
            for rows in torch.split(bytes_, _ROWS)
        ]
        return torch.cat(found)
