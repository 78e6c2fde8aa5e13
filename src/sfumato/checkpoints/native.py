"""The native format: a folder with model.json (what the model is, and its card) and its weights."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato import __version__
from sfumato.checkpoints.hollow import hollow
from sfumato.checkpoints.inside import refuse_strays
from sfumato.checkpoints.keys import check, compare, fit, shapes
from sfumato.checkpoints.safe import read_header, read_tensors, refuse_non_finite
from sfumato.core.alone import ALONE
from sfumato.core.atomic import write_atomically, write_text
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, SfumatoError, nearest
from sfumato.core.meta import without_numbers
from sfumato.model import Model

VERSION = 1
"""Version of the format; raised when an older sfumato could not read what this one writes."""

_MAX_JSON = 16 * 2**20
_KEYS = ("format", "version", "sfumato", "model", "card", "weights")
_MODEL_KEYS = ("network", "process", "prediction", "time_input", "learned_range", "conditioner", "space")
_CLASSIFIER_KEYS = ("network", "process", "classifies", "time_input", "conditioner", "space")
_WEIGHT_KEYS = ("file", "sha256", "bytes", "tensors", "parameters")


def save(model: Model, path: str | Path) -> str:
    """Write a model as a folder; an older model in it is replaced in one step, by the rename of model.json.

    Args:
        model: what to save; element types are kept.
        path: the folder, made if need be.

    Returns:
        The sha256 of the weights file, which also stands in model.json.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot be written: {error.strerror}", where=str(folder)) from error
    previous = _previous(folder)
    tensors = _tensors(model)
    # New weights never overwrite those an existing model.json speaks of.
    target = folder / ("model-2.safetensors" if previous == "model.safetensors" else "model.safetensors")
    write_atomically(target, partial(_write_tensors, tensors))
    digest = hash_of(target)
    card = {key: value for key, value in model.card.items() if key not in ("hash", "source")}
    record = {
        "format": "sfumato",
        "version": VERSION,
        "sfumato": __version__,
        "model": model.describe(),
        "card": card,
        "weights": {
            "file": target.name,
            "sha256": digest,
            "bytes": target.stat().st_size,
            "tensors": len(tensors),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        },
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "model.json", text)
    if previous and previous != target.name:
        (folder / previous).unlink(missing_ok=True)
    return digest


def matches(path: Path) -> bool:
    """Whether this is a folder of the native format, or its model.json."""
    file = _json_file(path)
    return file.is_file() and b'"sfumato"' in file.read_bytes()[:4096]


def read(path: str | Path, *, strict: bool = True) -> Model:
    """The model of a folder, on the CPU, ready to use; its card also holds the `hash` of the weights.

    Args:
        path: the folder or its model.json.
        strict: refuse weights that do not fit, and NaN among them; else warn and load what fits.

    Raises:
        NotFound: there is no such model.
        InvalidInput: a description that a newer sfumato wrote, or that makes no sense.
        CheckpointCorrupt: a damaged file; one changed since it was saved is told by its hash.
        KeyMismatch: the weights do not fit the description.
        NotFinite: NaN or infinite weights, when strict.
    """
    record = read_record(path)
    file = _json_file(Path(path))
    where = str(file)
    weights = file.parent / record["weights"]["file"]
    if not weights.is_file():
        raise NotFound("the weights are missing", where=str(weights), do="copy the whole folder")
    found = read_header(weights).shapes
    # Compared on the meta device first, so that a description cannot ask for memory its weights do not have.
    with without_numbers():
        expected = shapes(_built(record["model"], where).modules())
    check(compare(expected, found), str(weights), strict)
    if (digest := hash_of(weights)) != record["weights"]["sha256"]:
        raise CheckpointCorrupt(
            f"changed since it was saved: sha256 expected {record['weights']['sha256'][:12]}…, "
            f"got {digest[:12]}…",
            where=str(weights),
            do="copy or download it again",
        )
    tensors = read_tensors(weights)
    refuse_non_finite(tensors, str(weights), strict)
    model = hollow(lambda: _built(record["model"], where)) if strict else _built(record["model"], where)
    fit(model.modules(), tensors, str(weights), strict)
    for part in model.modules().values():
        part.eval()
    model.card = {**record["card"], "hash": digest, "source": str(file.parent)}
    return model


def read_record(path: str | Path) -> dict[str, Any]:
    """What model.json says, checked: known keys, a version this sfumato reads, a plain file name."""
    file = _json_file(Path(path))
    where = str(file)
    if file.parent.is_dir():
        refuse_strays(file.parent)
    try:
        if file.stat().st_size > _MAX_JSON:
            raise CheckpointCorrupt(f"more than {_MAX_JSON:,} bytes", where=where)
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound("no model here", where=where, do="give a folder with a model.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"cannot be read: {str(error)[:80]}", where=where) from None
    _known(record, _KEYS, where, "")
    if record["format"] != "sfumato" or type(record["version"]) is not int or record["version"] < 1:
        raise CheckpointCorrupt("does not describe a model of sfumato", where=where)
    if record["version"] > VERSION:
        raise InvalidInput(
            f"format version {record['version']}, written by sfumato {record['sfumato']}; "
            f"this is sfumato {__version__}, which reads up to version {VERSION}",
            where=where,
            do="upgrade sfumato",
        )
    said = record["model"] if isinstance(record["model"], dict) else {}
    keys: tuple[str, ...] = _CLASSIFIER_KEYS if "classifies" in said else _MODEL_KEYS
    keys = next(((each,) for each in ALONE if each in said), keys)
    _known(record["model"], keys, where, "model.")
    _known(record["weights"], _WEIGHT_KEYS, where, "weights.")
    name, digest = record["weights"]["file"], record["weights"]["sha256"]
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointCorrupt(f"the weights' name {name!r} is not a plain file name", where=where)
    if not isinstance(digest, str) or not isinstance(record["card"], dict):
        raise CheckpointCorrupt("the hash or the card is not what it should be", where=where)
    return dict(record)


def hash_of(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_file(path: Path) -> Path:
    if path.name == "model.json":
        return path
    # A training run keeps its finished model in a folder of its own.
    inner = path / "model" / "model.json"
    return inner if inner.is_file() and not (path / "model.json").is_file() else path / "model.json"


def _known(record: Any, keys: tuple[str, ...], where: str, prefix: str) -> None:
    if not isinstance(record, dict):
        raise CheckpointCorrupt(f"{prefix.rstrip('.') or 'it'} is not a JSON object", where=where)
    for key in record:
        if key not in keys:
            raise InvalidInput(f"unknown key {prefix + key!r}", where=where, do=nearest(key, keys))
    if missing := [prefix + key for key in keys if key not in record]:
        raise CheckpointCorrupt(f"lacks {', '.join(missing)}", where=where)


def _built(description: dict[str, Any], where: str) -> Model:
    try:
        return Model.from_description(copy.deepcopy(description))
    except SfumatoError as error:
        raise InvalidInput(str(error), where=where) from None
    except Exception as error:  # a network may fail in any way on sizes that make no sense
        raise InvalidInput(f"the description cannot be built: {error}", where=where) from error


def _tensors(model: Model) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    held: set[int] = set()
    for part, module in model.modules().items():
        for name, tensor in module.state_dict().items():
            tensor = tensor.detach().cpu().contiguous()
            if tensor.numel() and tensor.untyped_storage().data_ptr() in held:
                tensor = tensor.clone()
            held.add(tensor.untyped_storage().data_ptr())
            tensors[f"{part}.{name}"] = tensor
    return tensors


def _write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


def _previous(folder: Path) -> str:
    try:
        return str(read_record(folder)["weights"]["file"])
    except SfumatoError:
        return ""
