"""What the shapes of guided-diffusion's weights tell of the network they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.core.errors import InvalidInput


def settings(shapes: Mapping[str, tuple[int, ...]], where: str, blocks: int | None = None) -> dict[str, Any]:
    """Settings of ADM, or of ADMClassifier without its size, that are told by the shapes of its weights.

    Args:
        shapes: by name.
        where: what to call the file in errors.
        blocks: a level, for classifiers whose shapes do not tell.

    Raises:
        InvalidInput: shapes of another network, or blocks that nobody tells.
    """
    try:
        return _settings(shapes, where, blocks)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"the weights are not those of a network of guided-diffusion ({error!r})", where=where
        ) from None


def goes_up(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether it is a whole U-Net, and not the way down alone."""
    return any(name.startswith("output_blocks.") for name in shapes)


def _settings(shapes: Mapping[str, tuple[int, ...]], where: str, blocks: int | None) -> dict[str, Any]:
    channels = shapes["time_embed.0.weight"][1]
    stages = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    per = _per_level(shapes, stages, where, blocks)
    firsts = [f"input_blocks.{1 + start}" for start in range(0, stages, per)]
    widths = [shapes[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    multipliers = tuple(each // channels if each % channels == 0 else each / channels for each in widths)
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "channels": channels,
        "multipliers": multipliers,
        "blocks": per - 1,
        "attention": tuple(2**i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes),
        "scale_shift": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resblock_updown": not any(name.endswith(".0.op.weight") for name in shapes),
    }


def _per_level(shapes: Mapping[str, tuple[int, ...]], stages: int, where: str, blocks: int | None) -> int:
    """Stages of a level: its blocks, and what halves the map (the input convolution, in the first)."""
    downs = _numbers(shapes, "input_blocks.", ".0.op.weight")
    if downs:
        return min(downs)
    if goes_up(shapes):
        # On the way up, the last stage of a level ends with what doubles the map: a second residual block.
        found = _numbers(shapes, "output_blocks.", ".1.in_layers.2.weight")
        found |= _numbers(shapes, "output_blocks.", ".2.in_layers.2.weight")
        return min(found, default=stages - 1) + 1
    # On a way down alone, blocks that halve the map have neither attention nor other channels than before.
    changes = _numbers(shapes, "input_blocks.", ".0.skip_connection.weight")
    attends = _numbers(shapes, "input_blocks.", ".1.qkv.weight")

    def possible(per: int) -> bool:
        levels = [set(range(1 + start, per + start)) for start in range(0, stages, per)]
        whole = all(level <= attends or not level & attends for level in levels)
        return whole and all(i % per for i in attends) and all(i % per == 1 for i in changes)

    counts = [per - 1 for per in range(2, stages + 1) if stages % per == 0 and possible(per)]
    if blocks is not None and blocks in counts:
        return blocks + 1
    if len(counts) != 1:
        raise InvalidInput(
            f"{stages} stages may be levels of {' or '.join(map(str, counts)) or 'no'} blocks",
            where=where,
            do="say blocks=2, as it was trained",
        )
    return counts[0] + 1


def _numbers(shapes: Mapping[str, tuple[int, ...]], start: str, end: str) -> set[int]:
    """Numbers that stand between a start and an end of a name."""
    inside = (name for name in shapes if name.startswith(start) and name.endswith(end))
    middles = (name[len(start) : -len(end)] for name in inside)
    return {int(middle) for middle in middles if middle.isdigit()}
