"""Maps whose pixels are numbers of classes, as they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.picture import open_picture


def class_numbers(given: Any, where: str) -> Tensor:
    """What a map holds, (H, W) int64.

    Args:
        given: a path or the bytes of a PNG with a palette or in grey, such an image, or a tensor of integers.
        where: what it is, for messages.

    Raises:
        InvalidInput: it holds no class numbers.
    """
    if isinstance(given, Tensor):
        numbers = given[0] if given.ndim == 3 and len(given) == 1 else given
        if numbers.ndim != 2 or not numbers.numel() or numbers.is_floating_point() or numbers.is_complex():
            raise InvalidInput(
                f"a tensor {tuple(given.shape)} of {given.dtype}",
                where=where,
                do="give (height, width) of whole numbers",
            )
        return numbers.detach().cpu().long()
    if isinstance(given, str | Path | bytes):
        with open_picture(given) as picture:
            try:
                picture.load()
            except Exception as error:
                # Decoders' errors are as varied as the damage.
                raise InvalidInput(f"damaged picture: {error}", where=where) from error
            return class_numbers(picture, where)
    if not isinstance(given, Image.Image):
        raise InvalidInput(
            f"{type(given).__name__} is no map", where=where, do="give a PNG, an image or a tensor"
        )
    if given.mode not in ("P", "L") or given.format not in ("PNG", None):
        raise InvalidInput(
            f"a {given.format or ''} picture of mode {given.mode} holds no class numbers".replace("  ", " "),
            where=where,
            do="give a PNG with a palette, or in grey, whose numbers are the classes",
        )
    flat = torch.frombuffer(bytearray(given.tobytes()), dtype=torch.uint8)
    return flat.view(given.height, given.width).long()
