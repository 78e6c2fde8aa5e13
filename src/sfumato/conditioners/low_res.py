"""Low resolution: a small picture that a super-resolution model makes large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import picture_of


@dataclass(eq=False, repr=False)
class LowRes(nn.Module):
    """A small picture, stretched bilinearly to the size of x and laid beside it in the condition's channels.

    A picture larger than the small size is first averaged down to it over areas, as those in training are.
    It is always said: null keeps it, and guidance steers what else is told (the class).

    Saharia et al. 2021, "Image Super-Resolution via Iterative Refinement", arXiv:2104.07636; stretched as in
    Dhariwal & Nichol 2021, arXiv:2105.05233, section 6.3.

    Args:
        size: height and width of x, in pixels.
        factor: how many times smaller the small picture is.
        channels: 3 for colour, 1 for grey.

    Raises:
        InvalidInput: a size that the factor does not divide.
    """

    size: tuple[int, int] = (256, 256)
    factor: int = 4
    channels: int = 3

    inputs = kept = pictures = ("low_res",)

    def __post_init__(self) -> None:
        super().__init__()
        if self.factor < 1 or any(side < 1 or side % self.factor for side in self.size):
            raise InvalidInput(f"{self.size} does not divide by {self.factor}", where="low_res.size")
        if self.channels not in (1, 3):
            raise InvalidInput(f"{self.channels} channels are neither 3 nor 1", where="low_res.channels")
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    @property
    def small(self) -> tuple[int, int]:
        """Height and width of the small picture."""
        return self.size[0] // self.factor, self.size[1] // self.factor

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One picture for all rows or a list with one a row → channels (count, channels, height, width).

        A picture is a path, a PIL image, or a tensor (channels, h, w) in [-1, 1].
        """
        given = inputs.get("low_res")
        rows = list(given) if isinstance(given, list | tuple) else [given] * count
        if len(rows) != count:
            raise InvalidInput(f"{len(rows)} pictures for {count}", where="low_res")
        if any(row is None for row in rows):
            raise InvalidInput(
                "this model enlarges a picture and was given none", where="low_res", do="low_res=PATH"
            )
        stretched = torch.stack([self._stretched(row) for row in rows])
        return Condition(channels=stretched.to(self.device_of.device))  # type: ignore[arg-type]

    def null(self, condition: Condition) -> Condition:
        """The same picture: nothing else is known of how to enlarge none."""
        return Condition(channels=condition.channels)

    def check(self, **inputs: Any) -> None:
        """Refuse what is no picture, or of another shape, before any work."""
        for name, value in inputs.items():
            if name != "low_res" and value is not None:
                raise InvalidInput(
                    "this model heeds no such input", where=name, do="it is told low_res, a picture"
                )
        given = inputs.get("low_res")
        for picture in given if isinstance(given, list | tuple) else [given]:
            if picture is not None:
                self._stretched(picture)

    def _stretched(self, given: Any) -> Tensor:
        picture = picture_of(given, self.channels, "low_res")
        height, width = self.small
        if picture.shape[1] * width != picture.shape[2] * height:
            raise InvalidInput(
                f"a picture of {picture.shape[2]} x {picture.shape[1]} for {self.size[1]} x {self.size[0]}",
                where="low_res",
                do=f"cut it to the shape of {width} x {height}",
            )
        if picture.shape[1] > height:
            picture = F.interpolate(picture[None], (height, width), mode="area")[0]
        return F.interpolate(picture[None], self.size, mode="bilinear")[0]
