"""Load a model, whatever format it is in; every module of this folder with `matches` and `read` is one."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import torch

from sfumato.checkpoints.kinds import kind_of
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.model import Model


def formats() -> dict[str, ModuleType]:
    """The formats that are read, by name: modules with `matches(path)` and `read(path, strict=)`."""
    package = importlib.import_module(__package__)
    modules = {
        found.name: importlib.import_module(f"{__package__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    }
    return {n: m for n, m in sorted(modules.items()) if hasattr(m, "matches") and hasattr(m, "read")}


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
) -> Model:
    """Load a model from a file or folder of any known format; nothing is ever unpickled or run.

    Args:
        path: where it is.
        device: where to put it; the CPU if not said.
        dtype: element type to cast to; as saved if not said.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.

    Raises:
        NotFound: there is nothing at path.
        InvalidInput: it is of no known format; what it seems to be is named.
        CheckpointCorrupt, KeyMismatch, NotFinite: see the formats.
    """
    place = Path(path)
    try:
        exists = place.exists()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"not a usable path: {error}", where="path") from None
    if not exists:
        raise NotFound(
            "no such file or folder", where=str(path), do="give a model folder, as training makes it"
        )
    for reader in formats().values():
        if reader.matches(place):
            model: Model = reader.read(place, strict=strict)
            return model if device is None and dtype is None else model.to(device=device, dtype=dtype)
    raise InvalidInput(_what_it_is(place), where=str(path), do=_what_to_do(place))


def _what_it_is(place: Path) -> str:
    if place.is_dir():
        return "this folder holds no model of a known format"
    if not place.is_file():
        return "this is not a regular file"
    kind = kind_of(_start(place))
    return f"this is {kind.what}" if kind else "this file is of no known format"


def _what_to_do(place: Path) -> str:
    kind = kind_of(_start(place)) if place.is_file() else None
    return kind.do if kind else f"known formats: {', '.join(formats())}; a folder with a model.json is native"


def _start(place: Path) -> bytes:
    with open(place, "rb") as file:
        return file.read(512)
