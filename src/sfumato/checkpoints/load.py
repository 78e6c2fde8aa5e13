"""Load a model, whatever format it is in; every module of this folder with `matches` and `read` is one.

`matches(path)` tells cheaply whether something is of the format and never raises; `read(path, strict=)`
makes a Model of it, and may take more settings by name: what its weights do not tell. `report(path)`, where
there is one, tells what `read` would make of it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sfumato.checkpoints.controlled import controlled
from sfumato.checkpoints.embedded import DEFAULT, embedded
from sfumato.checkpoints.hub import is_identifier, snapshot
from sfumato.checkpoints.kinds import kind_of
from sfumato.checkpoints.prompted import grounded, has_boxes
from sfumato.checkpoints.torch_file import is_torch
from sfumato.checkpoints.weights import look
from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.model import Model

_BESIDE = " +"
"""Between a model and the controls beside it."""


def formats() -> dict[str, ModuleType]:
    """The formats that are read, by name: modules with `matches(path)` and `read(path, strict=)`."""
    package = importlib.import_module(__package__)
    modules = {
        found.name: importlib.import_module(f"{__package__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    }
    found = {n: m for n, m in sorted(modules.items()) if hasattr(m, "matches") and hasattr(m, "read")}
    return {"native": found.pop("native"), **found}


def format_of(place: Path) -> str | None:
    """The name of the format something is of; None if of none."""
    return next((name for name, module in formats().items() if module.matches(place)), None)


def load(
    path: str | Path = DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    **settings: Any,
) -> Model:
    """Load a model from a file or folder of any known format; nothing in it is ever run, and nothing fetched.

    Args:
        path: where it is. Where nothing of that name is here, also one that comes with the package, such as
            `emoji`, the default; or what the hub calls it, owner/name or owner/name@revision, where `fetch`
            has put it into the cache. Controls may stand behind it, each with the name of the hint that it
            reads: "emoji +edges=runs/canny", a control alone or a model that was trained with one. One of
            boxes is told `boxes`, whatever it is called.
        device: where to put it; the CPU if not said.
        dtype: element type to cast to; if not said as saved, and float32 for those of the package, which are
            kept in 16 bits for their size.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        settings: what foreign weights do not tell of themselves, such as `heads`; see their format.

    Raises:
        NotFound: there is nothing at path.
        InvalidInput: it is of no known format, and what it seems to be is named; or of one that needs to be
            told more, or knows no such setting.
        CheckpointCorrupt, KeyMismatch, NotFinite: see the formats.
    """
    base, *controls = str(path).split(_BESIDE)
    if controls:
        model = load(base, strict=strict, **settings)
        for each in controls:
            hint, sign, there = each.partition("=")
            control = load(there if sign else each)
            if has_boxes(control) is not None:
                model = grounded(model, control)
            else:
                model = controlled(model, control, hint) if sign else controlled(model, control)
        model.card["source"] = str(path)
        return model if device is None and dtype is None else model.to(device=device, dtype=dtype)
    place, source = locate(path)
    if not place.exists():
        raise NotFound(
            "no such file or folder", where=str(path), do="give a model folder, as training makes it"
        )
    if (name := format_of(place)) is not None:
        reader = formats()[name]
        _check_settings(name, reader, settings)
        model = _read(reader, place, source, strict, settings)
        if source:
            model.card["source"] = source
        if dtype is None and embedded(source) is not None:
            dtype = torch.float32
        return model if device is None and dtype is None else model.to(device=device, dtype=dtype)
    if source:
        raise NotFound("only a part of it was fetched", where=str(path), do=f"sfumato fetch {path}")
    if is_torch(place):
        # What keeps it from being read is told first.
        tables = look(place)
        held = max((list(table.entries) for table in tables), key=len, default=[])
        raise InvalidInput(
            f"weights of no known network: {len(held)} tensors, {', '.join(held[:3]) or 'none'}"[:400],
            where=str(path),
            do=f"known formats: {', '.join(formats())}",
        )
    raise InvalidInput(_what_it_is(place), where=str(path), do=_what_to_do(place))


def _read(reader: ModuleType, place: Path, source: str, strict: bool, settings: Mapping[str, Any]) -> Model:
    try:
        model: Model = reader.read(place, strict=strict, **settings)
    except NotFound as error:
        if not source:
            raise
        # A copy that broke off, or of another variant.
        do = f"sfumato fetch {source}; {error.do}"
        raise NotFound(error.what, where=error.where, do=do) from None
    return model


def locate(path: str | Path) -> tuple[Path, str]:
    """Where something is, and its name if it is of the package or of the hub; else the path, and "".

    Raises:
        InvalidInput: not a usable path.
        NotFound: an identifier of the hub that was not fetched.
    """
    place = Path(path)
    try:
        exists = place.exists()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"not a usable path: {error}", where="path") from None
    if not exists and (folder := embedded(str(path))) is not None:
        return folder, str(path)
    if not exists and not place.parent.is_dir() and is_identifier(str(path)):
        return snapshot(str(path))
    return place, ""


def _check_settings(name: str, reader: ModuleType, settings: Mapping[str, Any]) -> None:
    known = set(inspect.signature(reader.read).parameters) - {"path", "strict"}
    for key in settings:
        if key not in known:
            do = nearest(key, known) if known else "it takes none"
            raise InvalidInput(f"{name} weights take no such setting", where=key, do=do)


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
