"""Names of controls' weights: those of the released files, which are ours, to diffusers' and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sfumato.checkpoints import sd_unet_keys
from sfumato.checkpoints.sd_unet_keys import blocks_of, to_compvis
from sfumato.checkpoints.sd_unet_keys import to_diffusers as unet_to_diffusers
from sfumato.checkpoints.translation import Row
from sfumato.core.errors import InvalidInput

_HINT = "controlnet_cond_embedding"


def table(names: Iterable[str]) -> list[Row]:
    """Our names beside diffusers', for `translation.to_ours` and `to_theirs`; shapes are the same."""
    ours = list(names)
    blocks, last = blocks_of(ours), _last(ours)
    return [Row(name, (to_diffusers(name, blocks, last),)) for name in ours]


def to_diffusers(name: str, blocks: int, last: int) -> str:
    """The name diffusers has for one of ours.

    Args:
        name: such as zero_convs.3.0.weight.
        blocks: residual blocks a level.
        last: number of the last convolution of the hint's block, 14 in released files.

    Raises:
        InvalidInput: no name of a control.
    """
    if found := re.fullmatch(r"zero_convs\.(\d+)\.0\.(\w+)", name):
        return f"controlnet_down_blocks.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"middle_block_out\.0\.(\w+)", name):
        return f"controlnet_mid_block.{found[1]}"
    if found := re.fullmatch(r"input_hint_block\.(\d+)\.(\w+)", name):
        number = int(found[1])
        # Every second layer is an activation.
        place = {0: "conv_in", last: "conv_out"}.get(number, f"blocks.{number // 2 - 1}")
        return f"{_HINT}.{place}.{found[2]}"
    return unet_to_diffusers(name, blocks)


def from_diffusers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers' names, under ours.

    Raises:
        InvalidInput: a name of no control.
    """
    blocks = blocks_of(theirs)
    inner = [int(m[1]) for name in theirs if (m := re.match(rf"{_HINT}\.blocks\.(\d+)\.", name))]
    last = 2 * (max(inner, default=-1) + 2)
    return {_ours(name, blocks, last): tensor for name, tensor in theirs.items()}


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these are names of a control of diffusers."""
    return any(name.startswith(f"{_HINT}.") for name in names)


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The description of the control that shapes under our names are of, as `registry.build` takes it.

    How many heads attend no shape tells; see `sd_unet_keys.settings`.

    Raises:
        InvalidInput: shapes of none.
    """
    numbers = sorted(int(m[1]) for n in shapes if (m := re.fullmatch(r"input_hint_block\.(\d+)\.weight", n)))
    convolutions = [shapes[f"input_hint_block.{number}.weight"] for number in numbers]
    first = shapes.get("input_blocks.0.0.weight", ())
    if len(first) != 4 or len(convolutions) < 2 or any(len(shape) != 4 for shape in convolutions):
        raise InvalidInput("the shapes are those of no control", where="controlnet")
    # A control is a network's way down: what comes out of that network no shape tells, nor does it matter.
    found = sd_unet_keys.settings({**shapes, "out.2.weight": (first[1],)})
    del found["out_channels"]
    widths = tuple(shape[0] for shape in convolutions[:-1:2])
    return {**found, "name": "controlnet", "hint_channels": convolutions[0][1], "hint_widths": widths}


def _ours(name: str, blocks: int, last: int) -> str:
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(\w+)", name):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.fullmatch(r"controlnet_mid_block\.(\w+)", name):
        return f"middle_block_out.0.{found[1]}"
    if found := re.fullmatch(rf"{_HINT}\.(conv_in|conv_out|blocks\.(\d+))\.(\w+)", name):
        number = {"conv_in": 0, "conv_out": last}.get(found[1], 2 * int(found[2] or 0) + 2)
        return f"input_hint_block.{number}.{found[3]}"
    # A control has no way up, so that no level of it attends.
    return to_compvis(name, blocks, ())


def _last(names: Iterable[str]) -> int:
    return max(int(found[1]) for name in names if (found := re.match(r"input_hint_block\.(\d+)\.", name)))
