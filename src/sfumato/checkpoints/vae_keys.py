"""Names of autoencoders' weights: CompVis's, which are ours, to diffusers' and back; settings by shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from sfumato.checkpoints.translation import Layout, Row
from sfumato.core.errors import InvalidInput

_MIDDLE = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
}
_LEVEL = {"block": "resnets", "attn": "attentions"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
"""As diffusers wrote it up to 0.14: Stable Diffusion 1's own folders hold these names."""

_FLAT = Layout(lambda given: given[0].reshape(*given[0].shape[:2], 1, 1), lambda mine: [mine.flatten(1)])
"""A convolution of one place here, (C, C, 1, 1), that is a matrix (C, C) there."""

_SHARED = re.compile(r"(post_)?quant_conv\.|quantize\.|(en|de)coder\.(layers|conv_in|conv_out)\.")


def to_diffusers(name: str, levels: int, old: bool = False) -> str:
    """The name diffusers has for one of CompVis's.

    Args:
        name: such as decoder.up.0.block.1.conv1.weight, 0 the finest.
        levels: resolutions of the autoencoder; diffusers numbers the decoder's from the coarsest.
        old: attention's names as diffusers wrote them up to 0.14.

    Raises:
        InvalidInput: no name of an autoencoder.
    """
    if _SHARED.match(name):
        return name
    side, _, rest = name.partition(".")
    for ours, theirs in _MIDDLE.items():
        if rest.startswith(f"{ours}."):
            return f"{side}.{theirs}.{_inner(ours, rest.removeprefix(f'{ours}.'), old)}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(.+)", rest)
    if found:
        way, level, kind, number, inner = found.groups()
        place = levels - 1 - int(level) if way == "up" else int(level)
        return f"{side}.{way}_blocks.{place}.{_LEVEL[kind]}.{number}.{_inner(kind, inner, old)}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.\1sample\.(conv\..+)", rest)
    if not found:
        raise InvalidInput("no name of an autoencoder", where=name)
    way, level, inner = found.groups()
    place = levels - 1 - int(level) if way == "up" else int(level)
    return f"{side}.{way}_blocks.{place}.{way}samplers.0.{inner}"


def to_compvis(name: str, levels: int) -> str:
    """The inverse of `to_diffusers`, of old and new names.

    Raises:
        InvalidInput: no name of an autoencoder of diffusers.
    """
    if _SHARED.match(name):
        return name
    side, _, rest = name.partition(".")
    for ours, theirs in _MIDDLE.items():
        if rest.startswith(f"{theirs}."):
            return f"{side}.{ours}.{_outer(ours, rest.removeprefix(f'{theirs}.'))}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", rest)
    if found:
        way, level, kind, number, inner = found.groups()
        place = levels - 1 - int(level) if way == "up" else int(level)
        mine = "block" if kind == "resnets" else "attn"
        return f"{side}.{way}.{place}.{mine}.{number}.{_outer(mine, inner)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.\1samplers\.0\.(conv\..+)", rest)
    if not found:
        raise InvalidInput("no name of an autoencoder of diffusers", where=name)
    way, level, inner = found.groups()
    place = levels - 1 - int(level) if way == "up" else int(level)
    return f"{side}.{way}.{place}.{way}sample.{inner}"


def levels_of(names: Iterable[str]) -> int:
    """How many resolutions an autoencoder has, by the names of its encoder under either scheme."""
    found = [re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.", name) for name in names]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def table(names: Iterable[str], old: bool = False) -> list[Row]:
    """CompVis's names, which are ours, beside diffusers', for `translation.to_ours` and `to_theirs`.

    Args:
        names: of our state dict.
        old: attention's names as diffusers wrote them up to 0.14.
    """
    ours = list(names)
    levels = levels_of(ours)
    rows = []
    for name in ours:
        flat = re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", name)
        row = Row(name, (to_diffusers(name, levels, old),))
        rows.append(Row(row.ours, row.theirs, _FLAT) if flat else row)
    return rows


def from_diffusers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under diffusers' names, old or new, under ours and in our shapes.

    Raises:
        InvalidInput: a name of no autoencoder.
    """
    levels = levels_of(theirs)
    ours = {to_compvis(name, levels): tensor for name, tensor in theirs.items()}
    layouts = {row.ours: row.layout for row in table(ours)}
    return {name: layouts[name].join([tensor]) for name, tensor in ours.items()}


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether these are names of diffusers' KL and VQ autoencoders, rather than CompVis's."""
    return any(name.startswith("encoder.mid_block.") for name in names)


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The description of the autoencoder that shapes under our names are of, as `registry.build` takes it.

    Raises:
        InvalidInput: shapes of none.
    """
    try:
        return _tiny(shapes) if "encoder.layers.0.weight" in shapes else _convolutional(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"the shapes are those of no autoencoder ({error!r})", where="autoencoder"
        ) from None


def taesd(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two files TAESD is published as, under our names.

    In the decoder's an operation without weights stands first, the bound of the latents.
    """
    found = {f"encoder.layers.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in decoder.items():
        number, _, rest = name.partition(".")
        found[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
    return found


def _inner(kind: str, rest: str, old: bool) -> str:
    """Inside a block: CompVis's name to diffusers'."""
    head, _, tail = rest.partition(".")
    if kind.startswith(("attn", "mid.attn")):
        return f"{(_OLD_ATTENTION if old else _ATTENTION)[head]}.{tail}"
    return f"{'conv_shortcut' if head == 'nin_shortcut' else head}.{tail}".removesuffix(".")


def _outer(kind: str, rest: str) -> str:
    """Inside a block: diffusers' name to CompVis's."""
    if kind.startswith(("attn", "mid.attn")):
        for mine, his in [*_ATTENTION.items(), *_OLD_ATTENTION.items()]:
            if rest.startswith(f"{his}."):
                return f"{mine}.{rest.removeprefix(f'{his}.')}"
        raise InvalidInput("no name of an attention of diffusers", where=rest)
    return f"nin_shortcut.{rest.removeprefix('conv_shortcut.')}" if "conv_shortcut." in rest else rest


def _count(shapes: Mapping[str, tuple[int, ...]], start: str) -> int:
    """How many are numbered after a start of names."""
    numbers = [name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)]
    return 1 + max(map(int, numbers), default=-1)


def _convolutional(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    levels = levels_of(shapes)
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    width = math.gcd(*widths)
    found: dict[str, Any] = {
        "name": "vq" if "quantize.embedding.weight" in shapes else "kl",
        "channels": shapes["decoder.conv_in.weight"][1],
        "width": width,
        "multipliers": [each // width for each in widths],
        "blocks": _count(shapes, "encoder.down.0.block."),
        "attention": [
            2**level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in shapes
        ],
        "mid_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "in_channels": shapes["encoder.conv_in.weight"][1],
    }
    if found["name"] == "vq":
        return {**found, "codes": shapes["quantize.embedding.weight"][0]}
    return {**found, "quant_convs": "quant_conv.weight" in shapes}


def _tiny(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    def runs(side: str) -> list[int]:
        """Blocks in a row, between the single layers of a side."""
        kinds = {
            int(name.split(".")[2]): ".conv." in name for name in shapes if name.startswith(f"{side}.layers.")
        }
        line = "".join("B" if kinds[number] else "-" for number in sorted(kinds))
        return [len(run) for run in line.strip("-").split("-")]

    width, in_channels = shapes["encoder.layers.0.weight"][:2]
    return {
        "name": "tiny",
        "channels": shapes["decoder.layers.0.weight"][1],
        "width": width,
        "encoder_blocks": runs("encoder"),
        "decoder_blocks": runs("decoder"),
        "in_channels": in_channels,
    }
