"""Names of latent U-Nets' weights: CompVis's, which are ours, to diffusers' and back; settings by shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from sfumato.checkpoints.translation import Row
from sfumato.core.errors import InvalidInput
from sfumato.core.meta import without_numbers
from sfumato.networks.sd_unet import PUBLISHED, SDUNet

_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
"""Modules that stand where they stand whatever the settings; of those that begin alike the longer first."""

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""Inside a residual block; inside a transformer both have the same names."""

_INVERSE = {theirs: ours for ours, theirs in _RESIDUAL.items()}


def to_diffusers(name: str, blocks: int) -> str:
    """The name diffusers has for one of CompVis's.

    Args:
        name: such as output_blocks.5.2.conv.weight.
        blocks: residual blocks a level on the way down.

    Raises:
        InvalidInput: no name of a latent U-Net.
    """
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{ours}."):
            inner = name.removeprefix(f"{ours}.")
            return f"{theirs}.{_renamed(inner, _RESIDUAL) if 'resnets' in theirs else inner}"
    found = re.fullmatch(r"(in|out)put_blocks\.(\d+)\.([012])\.(.+)", name)
    if not found:
        raise InvalidInput("no name of a latent U-Net", where=name)
    way, number, part, inner = found.groups()
    # The first stage of the way down is a convolution, so that its levels begin at 1.
    level, place = divmod(int(number) - (way == "in"), blocks + 1)
    side = "down" if way == "in" else "up"
    if way == "in" and place == blocks:
        halving = f"conv.{inner[3:]}" if inner.startswith("op.") else _renamed(inner, _RESIDUAL)
        return f"down_blocks.{level}.downsamplers.0.{halving}"
    if part == "0":
        return f"{side}_blocks.{level}.resnets.{place}.{_renamed(inner, _RESIDUAL)}"
    if inner.startswith(("conv.", "in_layers.", "emb_layers.", "out_layers.")):
        return f"up_blocks.{level}.upsamplers.0.{_renamed(inner, _RESIDUAL)}"
    return f"{side}_blocks.{level}.attentions.{place}.{inner}"


def to_compvis(name: str, blocks: int, attended: Collection[int]) -> str:
    """The inverse of `to_diffusers`.

    Args:
        name: such as up_blocks.1.upsamplers.0.conv.weight.
        blocks: residual blocks a level on the way down.
        attended: levels of the way up, counted as diffusers does, that have attention; `attended_of` tells.

    Raises:
        InvalidInput: no name of a latent U-Net of diffusers.
    """
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{theirs}."):
            inner = name.removeprefix(f"{theirs}.")
            return f"{ours}.{_renamed(inner, _INVERSE) if 'resnets' in theirs else inner}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\1samplers)\.(\d+)\.(.+)", name)
    if not found:
        raise InvalidInput("no name of a latent U-Net of diffusers", where=name)
    way, level, kind, place, inner = found.groups()
    first = int(level) * (blocks + 1)
    if kind == "downsamplers":
        halving = f"op.{inner[5:]}" if inner.startswith("conv.") else _renamed(inner, _INVERSE)
        return f"input_blocks.{first + 1 + blocks}.0.{halving}"
    if kind == "upsamplers":
        doubling = f"{first + blocks}.{2 if int(level) in attended else 1}.{_renamed(inner, _INVERSE)}"
        return f"output_blocks.{doubling}"
    number = first + int(place)
    stage = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
    return f"{stage}.0.{_renamed(inner, _INVERSE)}" if kind == "resnets" else f"{stage}.1.{inner}"


def blocks_of(names: Iterable[str]) -> int:
    """Residual blocks a level on the way down, by a U-Net's names under either scheme."""
    stages, halvings, theirs = [0], list[int](), [-1]
    for name in names:
        if found := re.match(r"input_blocks\.(\d+)\.0\.(op\.)?", name):
            (halvings if found[2] else stages).append(int(found[1]))
        elif found := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name):
            theirs.append(int(found[1]))
    return max(theirs) + 1 or (min(halvings) - 1 if halvings else max(stages))


def attended_of(theirs: Iterable[str]) -> frozenset[int]:
    """Levels of diffusers' way up that have attention."""
    found = (re.match(r"up_blocks\.(\d+)\.attentions\.", name) for name in theirs)
    return frozenset(int(match[1]) for match in found if match)


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these are names of a latent U-Net of diffusers, rather than CompVis's."""
    return any(name.startswith("mid_block.attentions.0.transformer_blocks.") for name in names)


def table(names: Iterable[str]) -> list[Row]:
    """CompVis's names, which are ours, beside diffusers', for `translation.to_ours` and `to_theirs`.

    Args:
        names: of our state dict. Shapes are the same under both.
    """
    ours = list(names)
    blocks = blocks_of(ours)
    return [Row(name, (to_diffusers(name, blocks),)) for name in ours]


def pairs(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(Our name, diffusers' name) of every weight of the SDUNet with these settings; none is allocated."""
    with without_numbers():
        names = SDUNet(**settings).state_dict()
    return [(row.ours, row.theirs[0]) for row in table(names)]


def from_diffusers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers' names, under ours.

    Raises:
        InvalidInput: a name of no latent U-Net.
    """
    blocks, attended = blocks_of(theirs), attended_of(theirs)
    return {to_compvis(name, blocks, attended): tensor for name, tensor in theirs.items()}


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The description of the U-Net that shapes under our names are of, as `registry.build` takes it.

    How many heads attend no shape tells: that of the published network whose other settings are the same,
    else heads of 64 channels where projections are linear, and 8 heads where they are not, or as near to that
    as the widths allow. A first attention
    to tokens as wide as the map is taken for self-attention, and the second for attention to tokens where all
    maps with attention are of one width.

    Raises:
        InvalidInput: shapes of none.
    """
    try:
        found = _told(shapes)
        for published in PUBLISHED.values():
            # Compared field by field, so that what a published setting leaves to its default counts too.
            if all(found[key] == _full(published)[key] for key in found):
                shared = {key: _full(published)[key] for key in ("heads", "head_channels")}
                return {"name": "sd_unet", **found, **shared}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(f"the shapes are those of no latent U-Net ({error!r})", where="sd_unet") from None
    used = [
        int(multiplier * found["channels"])
        for level, multiplier in enumerate(found["multipliers"])
        if 2**level in found["attention"] or level == len(found["multipliers"]) - 1
    ]
    heads = {"heads": math.gcd(8, *used)}
    if found["linear_projection"]:
        heads = {"heads": 1, "head_channels": math.gcd(64, *used)}
    return {"name": "sd_unet", **found, **heads}


def _told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The settings that shapes tell, all but the heads."""
    blocks = blocks_of(shapes)
    last = max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    levels = (last - 1) // (blocks + 1) + 1
    channels = shapes["time_embed.0.weight"][1]
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [shapes[f"{first}.0.in_layers.2.weight"][0] for first in firsts]
    places = [*(f"{first}.1" for first in firsts), "middle_block.1"]
    depths = [_depth(shapes, place) for place in places]
    seen = {place: _keys(shapes, place, 2) for place, depth in zip(places, depths, strict=True) if depth}
    twice = {place: _keys(shapes, place, 1) for place in seen}
    across = dict(zip(places, [*widths, widths[-1]], strict=True))
    # Without tokens the second attention is as wide as each map; at one width alone nobody can tell.
    tokens = seen["middle_block.1"] if len(set(seen.values())) == 1 else 0
    attention = tuple(2**level for level in range(levels) if depths[level])
    # Levels without attention have no depth of their own; the middle has the last level's.
    spoken = [*(depth for depth in depths[:-1] if depth), depths[-1]]
    depth = spoken[0] if len(set(spoken)) == 1 else (*depths[:-2], depths[-1])
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "channels": channels,
        "multipliers": tuple(_ratio(width, channels) for width in widths),
        "blocks": blocks,
        "attention": attention,
        "depth": depth,
        "tokens": tokens,
        "linear_projection": len(shapes["middle_block.1.proj_in.weight"]) == 2,
        "cross_only": tuple(
            2**level
            for level, place in enumerate(places[:-1])
            if place in seen and twice[place] == tokens != across[place]
        ),
        "vector": shapes.get("label_emb.0.0.weight", (0, 0))[1],
        "classes": shapes.get("label_emb.weight", (0, 0))[0],
    }


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    """A name inside a residual block, with the module it begins with renamed."""
    module, _, parameter = name.rpartition(".")
    return f"{parts[module]}.{parameter}" if module in parts else name


def _full(published: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those that are left to their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(SDUNet)}
    return {**defaults, **published}


def _depth(shapes: Mapping[str, tuple[int, ...]], place: str) -> int:
    """Transformer blocks at a place."""
    start = f"{place}.transformer_blocks."
    numbers = [int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start)]
    return 1 + max(numbers, default=-1)


def _keys(shapes: Mapping[str, tuple[int, ...]], place: str, number: int) -> int:
    """Width of what the first or second attention at a place attends to."""
    return shapes[f"{place}.transformer_blocks.0.attn{number}.to_k.weight"][1]


def _ratio(width: int, channels: int) -> float:
    """width / channels, an int where it is one."""
    return width // channels if math.gcd(width, channels) == channels else width / channels
