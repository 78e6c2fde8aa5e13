"""Inputs: what a model is told, one value a picture, and what a recipe keeps of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFound

HELD = "sha256"
"""The key under which a recipe holds the hash of what it cannot hold itself: {"sha256": ...}."""


def rows_of(inputs: Mapping[str, Any], count: int, lists: Collection[str] = ()) -> dict[str, list[Any]]:
    """Inputs with one value for each of so many pictures; what is None is not said.

    A list holds one value for each picture; but a list of dictionaries is one value, a layout, and of inputs
    in `lists` (a size, a box) a list of numbers is.

    Raises:
        InvalidInput: a list of another length.
    """
    rows = {}
    for name, value in inputs.items():
        if value is None:
            continue
        many = isinstance(value, list | tuple)
        if many and (value or name in lists):
            kinds = (Mapping, int, float) if name in lists else (Mapping,)
            many = not all(isinstance(each, kinds) for each in value)
        rows[name] = list(value) if many else [value] * count
        if len(rows[name]) != count:
            raise InvalidInput(f"{len(rows[name])} values for {count} pictures", where=name)
    return rows


@dataclass(frozen=True)
class Record:
    """What a recipe keeps of inputs.

    Args:
        rows: plain data, one value a picture. Pictures are their paths; what is given from Python alone (an
            image, a tensor, bytes) is the hash of its content, {"sha256": ...}.
        pictures: the hash of each file's content, by its path.
        lost: names of inputs that the recipe alone does not make again.
    """

    rows: dict[str, list[Any]]
    pictures: dict[str, str]
    lost: tuple[str, ...]

    @staticmethod
    def of(rows: Mapping[str, list[Any]], pictures: Collection[str] = ()) -> Record:
        """Of inputs, one value a picture; texts in those of the names `pictures` are paths.

        Raises:
            NotFound: such a file is not there, or cannot be read.
        """
        known: dict[int, Any] = {}
        kept: dict[str, list[Any]] = {}
        hashes: dict[str, str] = {}
        for name, values in rows.items():
            kept[name] = []
            for value in values:
                # One value for all pictures is looked at once.
                key = id(value)
                if isinstance(value, Path) or (isinstance(value, str) and name in pictures):
                    path = str(value)
                    if path not in hashes:
                        hashes[path] = digest(path, name)
                    kept[name].append(path)
                    continue
                if key not in known:
                    known[key] = _plain(value)
                kept[name].append(known[key])
        lost = tuple(name for name, values in kept.items() if any(map(_is_lost, values)))
        return Record(kept, hashes, lost)

    def part(self, part: slice) -> Record:
        """That of some of the pictures made."""
        rows = {name: values[part] for name, values in self.rows.items()}
        said = {value for values in rows.values() for value in values if isinstance(value, str)}
        return Record(rows, {path: told for path, told in self.pictures.items() if path in said}, self.lost)


def digest(path: str | Path, where: str = "") -> str:
    """SHA-256 of a file; NotFound where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "no usable path"
        raise NotFound(f"{str(path)[:200]}: {what}", where=where) from None


def hash_of(value: Any) -> str | None:
    """SHA-256 of the content of a picture or map: a path's file, bytes, an image or a tensor; else None."""
    if isinstance(value, str | Path):
        return digest(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Tensor):
        from safetensors.torch import save

        held = value.detach().cpu().contiguous()
        return hashlib.sha256(save({"value": held})).hexdigest() if not held.is_complex() else None
    if isinstance(value, Image.Image):
        kind = repr((value.mode, value.size, value.getpalette()))
        return hashlib.sha256(kind.encode() + value.tobytes()).hexdigest()
    return None


def held_hash(value: Any) -> str | None:
    """The hash that a recipe holds in place of a value; None where it holds the value."""
    if isinstance(value, Mapping) and value.keys() == {HELD} and isinstance(value[HELD], str):
        return str(value[HELD])
    return None


def _plain(value: Any) -> Any:
    """Plain data as it is, other values by their hash, and what has none as None inside a hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return {HELD: hash_of(value)}


def _is_lost(value: Any) -> bool:
    """Whether a hash stands in place of a value, or anywhere inside it."""
    if isinstance(value, Mapping):
        return value.keys() == {HELD} or any(map(_is_lost, value.values()))
    return isinstance(value, list) and any(map(_is_lost, value))
