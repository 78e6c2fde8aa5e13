"""GLIGEN's boxes alone: the control out of the released files, and out of those pruned to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.assembly import Assembly, Piece, under
from sfumato.checkpoints.gligen_keys import SHARE
from sfumato.checkpoints.inside import sensible
from sfumato.checkpoints.weights import Table, find
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model

_NET = "position_net."
_FIRST, _LAST = f"{_NET}linears.0.weight", f"{_NET}linears.4.weight"
_NONE = f"{_NET}null_positive_feature"
_PLACE = re.compile(r"(input|middle|output)_blocks?\.(\d+)\..*transformer_blocks\.(\d+)\.fuser\.(.+)")
_HALVES = ("input", "middle", "output")


def matches(path: Path) -> bool:
    """Whether a file holds the grounding of boxes in text, under CompVis's names."""
    try:
        return path.is_file() and _table(path) is not None
    except SfumatoError:
        return False


def read(path: str | Path, *, strict: bool = True, heads: int = 8) -> Model:
    """The control, on the CPU, as a part alone: `grounded` joins it with a model.

    A released file holds Stable Diffusion 1.4 as well, which training left as it was: it is not read, and
    `load("sd-v1-4.safetensors +boxes=gligen.bin")` is the whole.

    Args:
        path: a file of safetensors or torch.save.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        heads: of the attention in every block, which no shape tells; 8 in Stable Diffusion 1.

    Raises:
        InvalidInput: no such control.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, heads).read(strict)


@sensible
def report(path: str | Path, heads: int = 8) -> Assembly:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    file = Path(path)
    if (table := _table(file)) is None:
        raise InvalidInput("it holds no grounding of boxes", where=str(path))
    names = _names(table.entries)
    entries = {name: table.entries[name] for name in names}
    shapes = {ours: entries[theirs][0] for theirs, ours in names.items()}
    gates = {ours for ours in shapes if ours.endswith(".linear.weight") and ours.startswith("fusers.")}
    if not gates:
        raise InvalidInput("it has no gated attention", where=str(path))
    widths = tuple(shapes[f"fusers.{number}.linear.weight"][0] for number in range(len(gates)))
    described = {
        "name": "gligen",
        "widths": widths,
        "heads": (heads,) * len(widths),
        "text": shapes[_NONE][0],
        "tokens": shapes[_LAST][0],
        "share": SHARE,
    }
    stored = {name: (file, table.prefix + name) for name in names}
    piece = Piece("boxes", entries, stored, under("network.", partial(_renamed, names)), table.place)
    left = len(table.entries) - len(names)
    notes = (f"{left} tensors left out: the frozen network",) if left else ()
    what = "boxes told by gated attention alone (GLIGEN)"
    return Assembly(what, file, {"control": described}, (piece,), {"name": file.stem}, notes)


def _table(path: Path) -> Table | None:
    return find(path, (_FIRST, _LAST, _NONE))


def _names(names: Mapping[str, Any]) -> dict[str, str]:
    """Names in a file → ours, of the control alone: its blocks are numbered as data pass them."""
    fusers = {name: found for name in names if (found := _PLACE.fullmatch(name))}
    order = sorted({_rank(found) for found in fusers.values()})
    numbered = {name: f"fusers.{order.index(_rank(found))}.{found[4]}" for name, found in fusers.items()}
    return {**{name: name for name in names if name.startswith(_NET)}, **numbered}


def _rank(found: re.Match[str]) -> tuple[int, int, int]:
    return _HALVES.index(found[1]), int(found[2]), int(found[3])


def _renamed(names: Mapping[str, str], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {names[name]: tensor for name, tensor in theirs.items()}
