"""The files of a part of a diffusers folder: whole or in shards, of a variant, of safetensors or torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.assembly import Convert, Piece, entries_of
from sfumato.core.atomic import write_atomically, write_text
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound

_MOST_BYTES = 64 * 2**20
_NAMES = (
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+))?\.(?P<form>safetensors)",
    r"(?:diffusion_pytorch_model|model)\.(?P<form>safetensors)\.index(?:\.(?P<variant>[\w-]+))?\.json",
    r"(?:diffusion_pytorch_model|pytorch_model)(?:\.(?P<variant>[\w-]+))?\.(?P<form>bin)",
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def lone_folder(path: Path, kind: str) -> Path | None:
    """The folder of one part of diffusers' class `kind` that this is, or its configuration or plain weights
    are in.
    """
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name not in ("config.json", "diffusion_pytorch_model.safetensors"):
        return None
    if not (folder / "config.json").is_file():
        return None
    return folder if read_json(folder / "config.json").get("_class_name") == kind else None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        NotFound: no such file.
        CheckpointCorrupt: something else is in it.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise CheckpointCorrupt(f"more than {_MOST_BYTES:,} bytes", where=str(file))
        held = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound("a file of the model is missing", where=str(file), do="copy all of it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"cannot be read: {str(error)[:80]}", where=str(file)) from None
    if not isinstance(held, dict):
        raise CheckpointCorrupt("not a JSON object", where=str(file))
    return held


def folder_of(root: Path, name: str) -> Path:
    """Where a part stands: in its folder, or beside model_index.json in the oldest of a single network."""
    return root / name if (root / name).is_dir() else root


def piece_of(root: Path, name: str, convert: Convert, variant: str) -> Piece:
    """A part's files, whole or in shards, without reading their weights."""
    return piece_in(root / name, name, convert, variant)


def piece_in(folder: Path, name: str, convert: Convert, variant: str) -> Piece:
    """As `piece_of`, of a part that stands in this folder."""
    files = files_of(folder, variant)
    stored: dict[str, tuple[Path, str]] = {}
    entries = {}
    for file in files:
        for key, entry in entries_of(file).items():
            if key in stored:
                raise CheckpointCorrupt(f"{key!r} stands in two files", where=str(file))
            stored[key], entries[key] = (file, key), entry
    return Piece(name, entries, stored, convert)


def files_of(folder: Path, variant: str) -> list[Path]:
    """The files of a part's weights: safetensors before torch.save's, the variant before the plain."""
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    found: dict[tuple[str, str], str] = {}
    for name in names:
        for pattern in _NAMES:
            if (match := re.fullmatch(pattern, name)) and not _SHARD.search(name):
                found.setdefault((match["variant"] or "", match["form"]), name)
    kinds = sorted({kind for kind, _ in found})
    for chosen in dict.fromkeys([variant, "", *(kinds if len(kinds) == 1 and not variant else ())]):
        for form in ("safetensors", "bin"):
            if file := found.get((chosen, form)):
                return _shards(folder, file) if file.endswith(".json") else [folder / file]
    raise NotFound(
        "holds no weights" + (f" of variant {variant!r}" if variant else ""),
        where=str(folder),
        do=f"say variant={kinds[0]!r}" if kinds else "copy the whole folder",
    )


def _shards(folder: Path, name: str) -> list[Path]:
    """The files an index names, which stand beside it and nowhere else."""
    held = read_json(folder / name).get("weight_map")
    if not isinstance(held, dict) or not held:
        raise CheckpointCorrupt("names no weights", where=str(folder / name))
    files = []
    for file in sorted({str(each) for each in held.values()}):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointCorrupt(f"{file!r} is no plain file name", where=str(folder / name))
        files.append(folder / file)
    for path in files:
        told = {key for key, file in held.items() if file == path.name}
        if told != entries_of(path).keys():
            raise CheckpointCorrupt(f"holds other weights than {name} says", where=str(path))
    return files


def licence_of(root: Path) -> dict[str, str]:
    """What a model card says of the licence, on a line of its own in its front matter."""
    for name in ("README.md", "model_card.md"):
        try:
            text = (root / name).read_text("utf-8")[:16384]
        except (OSError, ValueError):
            continue
        front = text.split("\n---", 1)[0] if text.startswith("---") else ""
        if found := re.search(r"^licen[sc]e:[ \t]*['\"]?([\w.+-]+)", front, re.MULTILINE):
            return {"licence": found[1]}
    return {}


def write_part(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = ""
) -> None:
    """Write a part's settings and weights, `name` its file's; element types are kept."""
    from safetensors.torch import save_file

    write_json(folder / "config.json", config)
    held = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    target = folder / f"{name or 'diffusion_pytorch_model'}.safetensors"
    write_atomically(target, lambda file: save_file(held, file, metadata={"format": "pt"}))


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, with the folder it stands in.

    Raises:
        InvalidInput: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot be written: {error.strerror}", where=str(file.parent)) from error
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
