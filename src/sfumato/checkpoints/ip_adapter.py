"""Adapters for image prompts alone (IP-Adapter): the released files, read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.checkpoints.assembly import Assembly, Piece, under
from sfumato.checkpoints.inside import sensible
from sfumato.checkpoints.weights import Table, look
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.model import Model

_PARTS = ("image_proj", "ip_adapter")
_FIRST = "ip_adapter.1.to_k_ip.weight"
_PAIR = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")
_HEAD = 64
"""Channels a head of the resampler, which no shape tells apart from their number."""


def matches(path: Path) -> bool:
    """Whether a file holds such an adapter."""
    try:
        return path.is_file() and _pieces(path) is not None
    except SfumatoError:
        return False


def read(path: str | Path, *, strict: bool = True) -> Model:
    """The adapter, on the CPU, as a part alone: `prompted` joins it with a model.

    Args:
        path: a file of safetensors, or of torch.save with its two parts as dictionaries.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.

    Raises:
        InvalidInput: no such adapter, or one that is not read, by name.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path).read(strict)


@sensible
def report(path: str | Path) -> Assembly:
    """What a file is found to be; no weights are read. Raises as `read` does."""
    file = Path(path)
    if (pieces := _pieces(file)) is None:
        raise InvalidInput("it holds no adapter for image prompts", where=str(path))
    shapes = {
        name.removeprefix("network."): shape for piece in pieces for name, shape in piece.shapes.items()
    }
    described = {"control": settings(shapes, str(path))}
    return Assembly(
        "an adapter for image prompts alone (IP-Adapter)", file, described, pieces, {"name": file.stem}
    )


def settings(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """The description of the adapter that shapes under the released names are of.

    Raises:
        InvalidInput: shapes of another.
    """
    if any("_lora" in name or "perceiver_resampler" in name for name in shapes):
        raise InvalidInput(
            "an adapter of faces that another network recognises (FaceID) is not read",
            where=where,
            do="give one that reads what CLIP sees",
        )
    numbers = sorted(int(found[1]) for name in shapes if (found := _PAIR.fullmatch(name)))
    keys = [shapes[f"ip_adapter.{number}.to_k_ip.weight"] for number in numbers]
    told: dict[str, Any] = {
        "name": "ip_adapter",
        "widths": tuple(width for width, _ in keys),
        "tokens": keys[0][1],
    }
    if (linear := shapes.get("image_proj.proj.weight")) is not None:
        return {**told, "seen": linear[1], "count": linear[0] // keys[0][1]}
    if (first := shapes.get("image_proj.proj.0.weight")) is not None and "image_proj.proj.3.weight" in shapes:
        return {**told, "seen": first[1], "count": 257, "projection": "layers"}
    if (latents := shapes.get("image_proj.latents")) is not None:
        depths = [int(m[1]) for name in shapes if (m := re.match(r"image_proj\.layers\.(\d+)\.", name))]
        return {
            **told,
            "seen": shapes["image_proj.proj_in.weight"][1],
            "count": latents[1],
            "projection": "resampler",
            "width": latents[2],
            "depth": max(depths) + 1,
            "heads": shapes["image_proj.layers.0.0.to_q.weight"][0] // _HEAD,
        }
    raise InvalidInput("its pictures become tokens in a way that is not known", where=where)


def _pieces(path: Path) -> tuple[Piece, ...] | None:
    """The weights of an adapter a file holds, if any: flat, or its two parts in dictionaries of their own."""
    tables = look(path)
    for table in tables:
        if _FIRST in table.entries:
            return (_piece(path, table, ""),)
    inside = {table.place: table for table in tables}
    if set(_PARTS) <= inside.keys() and _FIRST.removeprefix("ip_adapter.") in inside["ip_adapter"].entries:
        return tuple(_piece(path, inside[part], f"{part}.") for part in _PARTS)
    return None


def _piece(path: Path, table: Table, prefix: str) -> Piece:
    stored = {name: (path, table.prefix + name) for name in table.entries}
    convert = under(f"network.{prefix}", lambda theirs: dict(theirs))
    return Piece(prefix.rstrip(".") or "adapter", table.entries, stored, convert, table.place)
