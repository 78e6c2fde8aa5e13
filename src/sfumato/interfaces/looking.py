"""The commands that tell what things are: inspect, list and show."""

from __future__ import annotations

import dataclasses
import inspect as introspection
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato import registry
from sfumato.checkpoints import native
from sfumato.checkpoints.keys import KeyReport, compare, shapes
from sfumato.checkpoints.kinds import kind_of
from sfumato.checkpoints.load import format_of, formats, locate
from sfumato.checkpoints.safe import Header, read_header
from sfumato.checkpoints.torch_file import is_torch
from sfumato.checkpoints.weights import look
from sfumato.core.errors import InvalidInput, NotFound, SfumatoError, nearest
from sfumato.core.meta import without_numbers
from sfumato.interfaces.recipe import parse, read_parameters, read_texts
from sfumato.model import Model

_UNTOLD = "not told"


def inspect(path: Path) -> dict[str, Any]:
    """What a model folder, a weights file or a picture is, without reading any weights.

    Raises:
        NotFound: nothing there.
        InvalidInput: of no known kind.
    """
    asked, (path, source) = path, locate(path)
    if native.matches(path):
        return _model(path)
    if not path.exists():
        raise NotFound("no such file or folder", where=str(path))
    if (name := format_of(path)) is not None:
        return {"file": str(path), "format": name, **_foreign(path, name)}
    if path.is_dir() and source:
        raise NotFound("only a part of it was fetched", where=str(asked), do=f"sfumato fetch {asked}")
    if path.is_dir():
        raise InvalidInput("this folder holds no model of a known format", where=str(path))
    if is_torch(path):
        return {"file": str(path), **_tables(path)}
    with open(path, "rb") as file:
        kind = kind_of(file.read(512))
    if kind is None:
        return {"file": str(path), "what": "a safetensors file", **_weights(read_header(path))}
    if kind.what == "a PNG picture":
        return {"file": str(path), "what": kind.what, **explain(str(path))}
    return {"file": str(path), "what": kind.what, "advice": kind.do}


def catalogue(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Everything that has a name, by kind: {"sampler": {"heun": "what it is", ...}, ...}."""
    kinds = registry.kinds() if kind is None else [kind]
    return {each: dict(registry.table(each)) for each in kinds}


def explain(what: str) -> dict[str, Any]:
    """All that is known of a named thing, of every kind that has one of this name; or a picture's recipe.

    Raises:
        NotFound: neither.
    """
    if Path(what).suffix.lower() == ".png" or Path(what).is_file():
        return _picture(what)
    known = {kind: registry.names(kind) for kind in registry.kinds()}
    found = {kind: _settings(kind, what) for kind, names in known.items() if what in names}
    if not found:
        everything = sorted({name for names in known.values() for name in names})
        raise NotFound(f"nothing is called {what!r}", do=nearest(what, everything))
    return found


def text_of(value: Any, prose: bool = False, indent: str = "") -> str:
    """Nested plain data as aligned lines; prose sets texts of several lines in full."""
    if not isinstance(value, Mapping):
        return indent + _short(value)
    width = max((len(str(key)) for key in value), default=0)
    lines = []
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            lines += [f"{indent}{key}", text_of(entry, prose, indent + "  ")]
        elif prose and isinstance(entry, str) and "\n" in entry:
            lines += [f"{indent}{key}", *(f"{indent}  {line}".rstrip() for line in entry.split("\n"))]
        else:
            lines.append(f"{indent}{key!s:<{width}}  {_short(entry)}".rstrip())
    return "\n".join(lines)


def _model(path: Path) -> dict[str, Any]:
    record = native.read_record(path)
    folder = path.parent if path.name == "model.json" else path
    header = read_header(folder / record["weights"]["file"])
    report: KeyReport | str
    try:
        with without_numbers():
            model = Model.from_description(record["model"], record["card"])
        report = compare(shapes(model.modules()), header.shapes)
        inputs = {name: _choices(model.conditioner, name) for name in model.conditioner.inputs}
    except SfumatoError as error:
        report, inputs = str(error), {}
    return {
        "folder": str(folder),
        "what": f"a model of sfumato, format version {record['version']}, by sfumato {record['sfumato']}",
        **record["model"],
        "inputs": inputs,
        "card": record["card"],
        "licence": record["card"].get("licence", _UNTOLD),
        "sha256": record["weights"]["sha256"],
        "parts": _parts(header),
        **_weights(header),
        "keys": str(report),
    }


def _foreign(path: Path, name: str) -> dict[str, Any]:
    """What its format reports of a foreign file, or what keeps it from being read without being told more."""
    if (report := getattr(formats()[name], "report", None)) is None:
        return {"what": f"weights that sfumato.load reads as {name}"}
    try:
        found: dict[str, Any] = report(path).tell()
    except SfumatoError as error:
        return {"what": f"weights of {name} that need more told", "missing": error.what, "advice": error.do}
    return {**found, "licence": found.get("card", {}).get("licence", _UNTOLD)}


def _tables(path: Path) -> dict[str, Any]:
    """What a file of torch.save holds that no format knows."""
    try:
        tables = look(path)
    except SfumatoError as error:
        return {"what": f"a zip archive or file of torch.save; {error.what}", "advice": error.do}
    held = {table.place or "the whole file": f"{len(table.entries)} tensors" for table in tables}
    return {"what": "a file of torch.save, of no known network", "state dicts": held}


def _choices(conditioner: Any, name: str) -> str:
    labels = getattr(conditioner, "labels", {}).get(name)
    return f"{len(labels)}: {', '.join(labels[:12])}{', …' if len(labels) > 12 else ''}" if labels else "any"


def _weights(header: Header) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for entry in header.entries.values():
        name = str(entry.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + torch.Size(entry.shape).numel()
    return {
        "tensors": len(header.entries),
        "parameters": sum(counts.values()),
        "dtypes": counts,
        "bytes": header.bytes,
    }


def _parts(header: Header) -> dict[str, int]:
    """Parameters by part: network, conditioner, space."""
    counts: dict[str, int] = {}
    for name, entry in header.entries.items():
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + torch.Size(entry.shape).numel()
    return counts


def _picture(path: str) -> dict[str, Any]:
    texts = read_texts(path)
    told: dict[str, Any] = {}
    if "sfumato" in texts:
        told["recipe"] = parse(texts["sfumato"], path)
    if "parameters" in texts:
        told["parameters"] = read_parameters(texts["parameters"])
    if not told:
        raise NotFound("this picture carries no recipe", where=path)
    return told


def _settings(kind: str, name: str) -> dict[str, Any]:
    cls = registry.find(kind, name)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    settings = {field.name: f"{field.type} = {_default(field)}" for field in fields if field.init}
    return {"what": introspection.cleandoc(cls.__doc__ or ""), "settings": settings}


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "to be given"


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    return " ".join(str(value).split("\n"))
