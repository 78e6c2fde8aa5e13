"""T2I-Adapters alone: the released files, and diffusers' folders and files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.assembly import Assembly, Convert, lenient, under
from sfumato.checkpoints.diffusers_config import refuse_others
from sfumato.checkpoints.diffusers_files import licence_of, lone_folder, piece_in, read_json
from sfumato.checkpoints.inside import refuse_strays, sensible
from sfumato.checkpoints.one_file import OneFile, hollow
from sfumato.checkpoints.weights import find
from sfumato.core.errors import InvalidInput, SfumatoError, look_up
from sfumato.model import Model

_CLASS, _THEIRS = "T2IAdapter", "adapter.body.0.resnets.0.block1.weight"
_OURS = (
    ("conv_in.weight", "body.0.block1.weight", "body.1.block2.weight"),
    ("body.0.in_conv.weight", "body.0.body.0.block1.weight", "body.0.out_conv.weight"),
)
"""Names by which a full and a light one are known."""

_KINDS = {"full_adapter": "full", "full_adapter_xl": "full_xl", "light_adapter": "light"}
_XL_STAGES = (3, 5, 8, 9)
_READ = ("adapter_type", "channels", "downscale_factor", "in_channels", "num_res_blocks")
_SHAPES = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
"""(Channels of the hint, side of its squares) by their product with the side again."""


def matches(path: Path) -> bool:
    """Whether a file holds such an adapter, or a folder is one of diffusers'."""
    try:
        return lone_folder(path, _CLASS) is not None or (path.is_file() and _file(path) is not None)
    except (SfumatoError, OSError, ValueError):
        return False


def read(path: str | Path, *, strict: bool = True, variant: str = "") -> Model:
    """The adapter, on the CPU, as a part alone: `controlled` joins it with a model.

    Args:
        path: a file of safetensors or torch.save, or a folder of diffusers.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        variant: which of several files a folder has is read, such as fp16.

    Raises:
        NotFound: a folder's weights are missing.
        InvalidInput: no such adapter, or a setting that is not done here, by name.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, variant).read(strict)


@sensible
def report(path: str | Path, variant: str = "") -> Assembly:
    """What it is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    place, what = Path(path), "a T2I-Adapter alone"
    if (folder := lone_folder(place, _CLASS)) is not None:
        refuse_strays(folder)
        described = from_config(read_json(folder / "config.json"))
        convert = under("network.", _convert(described["blocks"]))
        piece = piece_in(folder, "adapter", convert, variant)
        card = {"name": folder.name, **licence_of(folder)}
        return Assembly(what, folder, {"control": described}, (piece,), card)
    if (whole := _file(place)) is None:
        raise InvalidInput("it holds no T2I-Adapter", where=str(path))
    names = whole.table.entries
    convert = _convert(_blocks(names)) if _THEIRS in names else partial(dict)
    entries = whole.begun("")
    shapes = {name: tuple(tensor.shape) for name, tensor in convert(hollow(entries)).items()}
    piece = whole.piece("adapter", "", entries, under("network.", convert))
    others, idle = whole.rest([piece])
    described, card = settings(shapes), {"name": place.stem, **whole.licence}
    return Assembly(f"{what}, one file", place, {"control": described}, (piece, *others), card, idle)


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the adapter that a configuration of diffusers is of.

    Raises:
        InvalidInput: a kind that is not known; `where` names the setting.
    """
    refuse_others(config, "t2i_adapter.config", {}, _READ)
    kind = look_up(_KINDS, str(config.get("adapter_type", "full_adapter")), "kind of adapter")
    channels = tuple(config.get("channels", (320, 640, 1280, 1280)))
    return {
        "name": "t2i_adapter",
        "kind": kind,
        "channels": channels,
        "blocks": config.get("num_res_blocks", 2),
        "unshuffle": config.get("downscale_factor", 8),
        "hint_channels": config.get("in_channels", 3),
        "stages": _stages(kind, len(channels)),
    }


def settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The description of the adapter that shapes under our names are of.

    Raises:
        InvalidInput: shapes of none that was released.
    """
    light = _OURS[1][2] in shapes
    first = "body.0.in_conv.weight" if light else "conv_in.weight"
    if (seen := _SHAPES.get(shapes[first][1])) is None:
        raise InvalidInput(
            f"it reads {shapes[first][1]} numbers a place, which none does", where="t2i_adapter"
        )
    last = "out_conv" if light else "block2"
    found = (re.fullmatch(rf"body\.(\d+)\.{last}\.weight", name) for name in shapes)
    numbers = sorted(int(match[1]) for match in found if match)
    if light:
        channels = tuple(shapes[f"body.{number}.out_conv.weight"][0] for number in numbers)[:-1]
        inner = (re.fullmatch(r"body\.0\.body\.(\d+)\.block1\.weight", name) for name in shapes)
        blocks = sum(match is not None for match in inner)
        kind = "light"
    else:
        starts = [number for number in numbers if f"body.{number}.in_conv.weight" in shapes]
        # Where the width grows a map begins; each has as many blocks as there are before the first.
        blocks = starts[0] if starts else len(numbers)
        channels = tuple(shapes[f"body.{number}.block2.weight"][0] for number in numbers[::blocks])
        kind = "full_xl" if seen[1] == 16 else "full"
    return {
        "name": "t2i_adapter",
        "kind": kind,
        "channels": channels,
        "blocks": blocks,
        "unshuffle": seen[1],
        "hint_channels": seen[0],
        "stages": _stages(kind, len(channels)),
    }


def from_diffusers(theirs: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Weights under diffusers' names, under ours.

    Args:
        theirs: of a T2IAdapter of diffusers.
        blocks: residual blocks a map.

    Raises:
        InvalidInput: a name of no adapter.
    """
    light = any(name.endswith(".out_conv.weight") for name in theirs)
    return {_ours(name, blocks, light): tensor for name, tensor in theirs.items()}


def _ours(name: str, blocks: int, light: bool) -> str:
    inner = name.removeprefix("adapter.")
    if inner == name:
        raise InvalidInput("no name of an adapter of diffusers", where=name)
    if inner.startswith("conv_in."):
        return inner
    if found := re.fullmatch(r"body\.(\d+)\.resnets\.(\d+)\.(.+)", inner):
        level, place = int(found[1]), int(found[2])
        return (
            f"body.{level}.body.{place}.{found[3]}" if light else f"body.{level * blocks + place}.{found[3]}"
        )
    if found := re.fullmatch(r"body\.(\d+)\.((in|out)_conv\..+)", inner):
        return f"body.{int(found[1]) * (1 if light else blocks)}.{found[2]}"
    raise InvalidInput("no name of an adapter of diffusers", where=name)


def _convert(blocks: int) -> Convert:
    return lenient(partial(from_diffusers, blocks=blocks))


def _blocks(names: Mapping[str, Any]) -> int:
    start = "adapter.body.0.resnets."
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in names if name.startswith(start))


def _stages(kind: str, maps: int) -> tuple[int, ...]:
    """Where the maps go in Stable Diffusion's U-Nets, of two blocks a level."""
    if kind == "full_xl":
        return _XL_STAGES[:maps]
    return tuple(3 * level + 2 for level in range(maps + (kind == "light")))


def _file(path: Path) -> OneFile | None:
    for names in ((_THEIRS,), *_OURS):
        if (table := find(path, names)) is not None:
            return OneFile(path, table)
    return None
