"""Extend: a picture continued far beyond its frame, piece by piece."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import derive
from sfumato.editing.inpaint import Inpaint
from sfumato.editing.outpaint import Outpaint
from sfumato.generation.generate import generate
from sfumato.generation.images import Images
from sfumato.model import Model


def extend(
    model: Model,
    image: Any,
    /,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    tile: int | tuple[int, int] | None = None,
    overlap: int = 0,
    feather: int = 0,
    seed: int = 0,
    **settings: Any,
) -> Images:
    """A picture continued by any margins with a model that makes pictures of one size.

    Tiles of that size lie evenly over the whole, neighbours sharing half; from the picture outwards each is
    inpainted where nothing is yet, seeing what was made before it. What is given comes out as it went in.
    Where all of it is to be walked at once, guidance `windows` and the edit `outpaint` do that.

    Args:
        model: what makes it.
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list of several of one size.
        left, right, top, bottom: pixels to add.
        tile: side, or (height, width), in pixels; the size of the model's card if not said.
        overlap: as of `outpaint`.
        feather: as of `inpaint`, in each tile.
        seed: of the first picture; each tile has its own, derived from it.
        settings: as `generate` takes them (steps, sampler, guidance, prompt, ...).

    Raises:
        InvalidInput: no margin, a tile that is none; else as `generate`.
    """
    if "size" in settings or "edit" in settings:
        raise InvalidInput("the picture has its own", where="extend.size, edit", do="leave them out")
    wanted = tile if tile is not None else model.card.get("size")
    if wanted is None:
        raise InvalidInput("the model's card names no size", where="extend.tile", do="give one")
    high, wide = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    if min(high, wide) < 2 or high % model.space.step or wide % model.space.step:
        raise InvalidInput(f"{high} x {wide} is no multiple of {model.space.step}", where="extend.tile")
    frame = Outpaint(image, left, right, top, bottom, overlap=overlap)
    canvas = frame.canvas(model.space.image_channels, None)
    assert canvas.change is not None, "a margin may change"
    whole, change = canvas.image.clone(), canvas.change.clone()
    seeds = [seed + row for row in range(len(whole))]
    height, width = whole.shape[2:]
    middle = (top + (height - top - bottom) / 2, left + (width - left - right) / 2)
    spots = [(y, x) for y in _starts(height, high) for x in _starts(width, wide)]
    # The nearest first, so that each finds something beside it to go on from.
    spots.sort(key=lambda at: math.dist(middle, (at[0] + high / 2, at[1] + wide / 2)))
    for number, (y, x) in enumerate(spots):
        area = (slice(None), slice(None), slice(y, y + high), slice(x, x + wide))
        if not bool(change[area].any()):
            continue
        edit = Inpaint(list(whole[area]), 2 * change[area][0] - 1, feather=feather)
        own = [derive(each, "tile", number) for each in seeds]
        made = generate(model, seeds=own, edit=edit, **settings)
        whole[area], change[area] = made.tensor, 0.0
    told = {"size": [height, width], "unrecorded": ["extend"]}
    shared = [
        {**{k: v for k, v in recipe.items() if k not in ("edit", "batch")}, **told, "seed": own}
        for recipe, own in zip(made.recipes, seeds, strict=True)
    ]
    return replace(made, tensor=whole, recipes=tuple(shared))


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side, half of one apart at most."""
    gaps = max(-(-2 * (length - tile) // tile), 0)
    return [round(i * (length - tile) / gaps) for i in range(gaps)] + [max(length - tile, 0)]
