"""Depth: how far away each place of the picture is to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.conditioners.beside import Beside, rows_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import open_picture, picture_of


@dataclass(eq=False, repr=False)
class Depth(Beside):
    """A map of depth beside x in the condition's channels, resized to x's places and spread over [-1, 1].

        d = 2 (d - min) / (max - min) - 1, of each map by itself, after it is resized (bicubic)

    Only the order and proportion of depths are told, so maps of any unit will do; near is high, as
    estimators of inverse depth have it. A map without depth is zeros. Null keeps the map: guidance steers
    what else is said.

    Stable Diffusion 2's depth model (x of 4 channels and this are 5), with maps as Ranftl, Lasinger, Hafner,
    Schindler & Koltun 2019 (MiDaS), arXiv:1907.01341, estimate them.

    Raises:
        InvalidInput: when told, if no map is given or a size does not fit.
    """

    inputs = kept = ("depth", "size")
    pictures = ("depth",)

    @property
    def shares(self) -> dict[str, int | None]:
        """One channel."""
        return {"channels": 1}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One map for all rows or a list with one a row → channels (count, 1, h, w).

        A map is a path or a PIL image, grey of 8 or 16 bits, or a tensor (H, W) or (1, H, W) of any unit, of
        the shape of the picture that is made.
        """
        rows = rows_of(count, inputs.get("depth"), "depth")
        if any(row is None for row in rows):
            raise InvalidInput("this model is told depth and was given none", where="depth", do="depth=PATH")
        maps = [self._read(row) for row in rows]
        maps, whole = self._fitted(maps, inputs)
        size = self._places(*whole)
        spread = torch.cat([_spread(F.interpolate(each[None, None], size, mode="bicubic")) for each in maps])
        return Condition(channels=spread.to(self.device_of.device))

    def _read(self, given: Any) -> Tensor:
        """(H, W) float32."""
        if isinstance(given, Tensor):
            numbers = given.detach().cpu().float()
            if numbers.ndim == 3 and len(numbers) == 1:
                numbers = numbers[0]
            if numbers.ndim != 2 or not numbers.numel() or not bool(torch.isfinite(numbers).all()):
                raise InvalidInput(
                    f"a tensor {tuple(given.shape)} is no map of finite numbers",
                    where="depth",
                    do="give (height, width)",
                )
        else:
            numbers = _deep(given)
        return numbers


def _deep(given: Any) -> Tensor:
    """Of a file or an image; sixteen bits are kept, which pictures for the eye have no use for."""
    if isinstance(given, str | Path | bytes):
        with open_picture(given) as picture:
            if not picture.mode.startswith("I"):
                return picture_of(given, 1, "depth")[0]
            try:
                return _deep(picture.convert("I"))
            except Exception as error:
                # Decoders' errors are as varied as the damage.
                where = "depth" if isinstance(given, bytes) else str(given)
                raise InvalidInput(f"damaged picture: {error}", where=where) from error
    if isinstance(given, Image.Image) and given.mode[0] in "IF":
        whole = given.mode[0] == "I"
        flat = bytearray(given.convert("I" if whole else "F").tobytes())
        numbers = torch.frombuffer(flat, dtype=torch.int32 if whole else torch.float32).float()
        return numbers.view(given.height, given.width)
    return picture_of(given, 1, "depth")[0]


def _spread(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2, 3), True), maps.amax((1, 2, 3), True)
    return torch.where(high > low, 2 * (maps - low) / (high - low).clamp_min(1e-30) - 1, 0.0)
