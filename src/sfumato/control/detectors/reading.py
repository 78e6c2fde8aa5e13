"""Reading: what detectors are given, as tensors, and the library that finds edges and lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput, MissingExtra
from sfumato.data.pairs import read_map
from sfumato.data.picture import picture_of

FULL = 512
"""The shorter side, in pixels, at which widths and radii of what is drawn are told; others are in proportion.
"""


def seen(given: Any, where: str) -> Tensor:
    """A picture with its transparency, (3 or 4, H, W) float32 in [-1, 1] on the CPU; grey becomes colour.

    Args:
        given: a path, the bytes of a file, a PIL image, or a tensor (1, 3 or 4, H, W) in [-1, 1].
        where: what errors call it.

    Raises:
        InvalidInput: it is none of these.
    """
    if not isinstance(given, Tensor):
        return picture_of(given, 4, where)
    channels = given.shape[0] if given.ndim == 3 and given.shape[0] in (1, 4) else 3
    picture = picture_of(given, channels, where).clamp(-1, 1)
    return picture.expand(3, -1, -1) if channels == 1 else picture


def colors(given: Any, where: str) -> Tensor:
    """A picture as one would see it, transparency over white: (3, H, W), as `seen` takes it."""
    picture = seen(given, where)
    if len(picture) == 3:
        return picture
    alpha = (picture[3:] + 1) / 2
    return alpha * picture[:3] + (1 - alpha)


def levels(picture: Tensor) -> Any:
    """A picture (C, H, W) in [-1, 1] as OpenCV takes it: an array (H, W, C) of bytes, red first."""
    return ((picture + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()


def map_of(given: Any, where: str, classes: bool) -> Tensor:
    """A map (H, W): int64 class numbers, or float32 numbers such as depths.

    Args:
        given: a path of a PNG (class numbers in its palette or grey; depths in grey of 8 or 16 bits), a PIL
            image of that kind, or a tensor (H, W) or (1, H, W).
        where: what errors call it.
        classes: whether numbers are classes.

    Raises:
        InvalidInput: it is none of these.
    """
    if isinstance(given, str | Path):
        given = read_map(Path(given), classes)
    if isinstance(given, Image.Image):
        if given.mode not in (("P", "L") if classes else ("L", "F", "I", "I;16")):
            raise InvalidInput(f"a picture of mode {given.mode} is no map", where=where, do="give a grey PNG")
        plain = given.convert("I") if given.mode.startswith("I") else given
        plain = plain if classes else plain.convert("F")
        flat = torch.frombuffer(bytearray(plain.tobytes()), dtype=torch.uint8 if classes else torch.float32)
        given = flat.view(given.height, given.width)
    good = isinstance(given, Tensor) and given.numel() > 0 and not given.is_complex()
    if good and given.ndim == 3 and len(given) == 1:
        given = given[0]
    if not good or given.ndim != 2 or (classes and given.is_floating_point()):
        told = f"a tensor {tuple(given.shape)} of {given.dtype}" if good else type(given).__name__
        kind = "whole numbers" if classes else "numbers"
        raise InvalidInput(f"{told} is no map", where=where, do=f"give (height, width) of {kind}")
    found = given.detach().cpu()
    if not bool(torch.isfinite(found).all()):
        raise InvalidInput("its numbers are not all finite", where=where)
    return found.long() if classes else found.float()


def scale_of(height: int, width: int) -> float:
    """How large what is drawn is on a picture of a size, of 1 at `FULL`."""
    return min(height, width) / FULL


def opencv() -> Any:
    """The library cv2.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("this detector needs OpenCV", do="pip install 'sfumato[control]'") from None
    return cv2
