"""Tiling: a map too large for memory worked on in overlapping tiles that fade into each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput


def tiled(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    margin: int = 0,
    inputs: int = 1,
    outputs: int = 1,
) -> Tensor:
    """What `run` makes of x, computed row by row and tile by tile.

    Tiles lie evenly, all of full size, so that none sees less than another. Where two meet they share
    `overlap` places or more; in the middle of these, over overlap - 2 · margin places, one fades linearly
    into the other, and all else is of one tile alone. If an output depends on no input farther than `margin`
    places away, the result is that of the whole map.

    Args:
        run: (1, C, h · inputs, w · inputs) → (1, D, h · outputs, w · outputs).
        x: (B, C, H · inputs, W · inputs).
        tile: side of a tile, in places.
        overlap: least number of places two neighbours share, at most half a tile.
        margin: places at a cut edge that are not used, less than half of the overlap.
        inputs: numbers of x, along a side, a place.
        outputs: numbers of the result, along a side, a place.

    Raises:
        InvalidInput: sizes that do not fit together.
    """
    if not 0 <= 2 * margin < overlap <= tile // 2:
        raise InvalidInput(
            f"tiles of {tile} places cannot share {overlap} with {margin} unused at each side", where="tile"
        )
    rows, columns = (_windows(side // inputs, tile, overlap, margin, outputs) for side in x.shape[-2:])
    result: Tensor | None = None
    for number in range(len(x)):
        for top, down in rows:
            for left, right in columns:
                piece = x[
                    number : number + 1,
                    :,
                    top * inputs : (top + tile) * inputs,
                    left * inputs : (left + tile) * inputs,
                ]
                made = run(piece)
                if result is None:
                    sides = [side // inputs * outputs for side in x.shape[-2:]]
                    result = made.new_zeros(len(x), made.shape[1], *sides)
                height, width = made.shape[-2:]
                weight = down[:height, None].to(made) * right[:width].to(made)
                place = result[
                    number, :, top * outputs : top * outputs + height, left * outputs : left * outputs + width
                ]
                place += weight * made[0]
    assert result is not None, "x has rows"
    return result


def _windows(side: int, tile: int, overlap: int, margin: int, outputs: int) -> list[tuple[int, Tensor]]:
    """Where tiles start along one side, in places, and what each number of their results counts."""
    gaps = max(-(-(side - tile) // (tile - overlap)), 0)
    starts = [round(i * (side - tile) / gaps) for i in range(gaps)] + [max(side - tile, 0)]
    span = min(tile, side)
    fade = (overlap - 2 * margin) * outputs
    # Where each fades into the next: the middle of what both cover, in numbers of the result.
    begins = [((before + after + span) * outputs - fade) / 2 for before, after in pairwise(starts)]
    windows = []
    for number, start in enumerate(starts):
        at = torch.arange(span * outputs, dtype=torch.float64) + start * outputs + 0.5
        weight = torch.ones_like(at)
        if number:
            weight = weight * ((at - begins[number - 1]) / fade).clamp(0, 1)
        if number < gaps:
            weight = weight * (1 - ((at - begins[number]) / fade).clamp(0, 1))
        windows.append((start, weight))
    return windows
