"""Files of weights, looked at before they are read: the state dicts they hold, with shapes and types."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.safe import read_header, read_tensors
from sfumato.checkpoints.torch_file import is_torch, read_state, read_torch
from sfumato.core.errors import CheckpointCorrupt

AVERAGES = ("ema", "ema_model", "model_ema", "ema_state_dict")
"""What training codes call the averaged weights, where they keep them beside the others."""

_DEPTH = 3


@dataclass(frozen=True)
class Table:
    """One state dict of a file.

    Args:
        place: the way to it, such as "ema"; "" where the file is nothing else.
        entries: shape and element type of every tensor by name, without the prefix.
        prefix: what stands before every name in the file, `module.` after distributed training.
        form: of the file.
        bytes: size of the file.
    """

    place: str
    entries: dict[str, tuple[tuple[int, ...], torch.dtype]]
    prefix: str
    form: str
    bytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: shape for name, (shape, _) in self.entries.items()}

    @property
    def averaged(self) -> bool | None:
        """Whether these are averaged weights (EMA); None where the file does not tell."""
        return self.place.rpartition(".")[2] in AVERAGES if self.place else None

    def stand_ins(self) -> dict[str, Tensor]:
        """Tensors without numbers in place of those of the file."""
        return {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, (shape, dtype) in self.entries.items()
        }


def look(path: str | Path) -> tuple[Table, ...]:
    """The state dicts of a file of torch.save or safetensors, averaged ones first; no weights are read.

    Raises: as `read_header` and `read_torch` do.
    """
    try:
        told = os.stat(path)
    except (OSError, ValueError):
        told = None
    key = () if told is None else (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
    return _look(str(path), key)


def find(path: str | Path, names: Iterable[str]) -> Table | None:
    """The first state dict of a file that has all these names; None if there is none, raising as `look`."""
    wanted = set(names)
    return next((table for table in look(path) if wanted <= table.entries.keys()), None)


def take(path: str | Path, table: Table) -> dict[str, Tensor]:
    """The tensors of a state dict that `look` found, on the CPU, each in memory of its own.

    Raises: as `read_tensors` and `read_state` do.
    """
    tensors = copy_out(path, table.place, {table.prefix + name for name in table.entries})
    return {name.removeprefix(table.prefix): tensor for name, tensor in tensors.items()}


def copy_out(path: str | Path, place: str, names: Set[str]) -> dict[str, Tensor]:
    """Tensors of a file of torch.save or safetensors, by name, each in memory of its own; no others are read.

    Args:
        path: the file.
        place: the way to the state dict inside a file of torch.save.
        names: all of which are there.

    Raises: as `read_tensors` and `read_state` do.
    """
    found = read_state(path, place, names) if is_torch(path) else read_tensors(path, names)
    if found.keys() != names:
        raise CheckpointCorrupt("changed while it was read", where=str(path))
    return found


@functools.lru_cache(maxsize=8)
def _look(path: str, key: tuple[int, ...]) -> tuple[Table, ...]:
    if not is_torch(path):
        header = read_header(path)
        entries = {name: (entry.shape, entry.dtype) for name, entry in header.entries.items()}
        return (_table("", entries, "safetensors", header.bytes),)
    found: list[Table] = []
    left: list[tuple[str, Any, int]] = [("", read_torch(path, hollow=True), 0)]
    while left:
        place, held, depth = left.pop(0)
        if not isinstance(held, Mapping):
            continue
        tensors = {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in held.items()
            if isinstance(name, str) and isinstance(tensor, Tensor)
        }
        if tensors:
            found.append(_table(place, tensors, "torch.save", key[2]))
        if depth < _DEPTH:
            inner = [(k, v) for k, v in held.items() if isinstance(k, str) and "." not in k]
            left += [(f"{place}.{k}" if place else k, v, depth + 1) for k, v in inner]
    return tuple(sorted(found, key=lambda table: not table.averaged))


def _table(place: str, entries: dict[str, Any], form: str, size: int) -> Table:
    prefix = "module." if entries and all(name.startswith("module.") for name in entries) else ""
    bare = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return Table(place, bare, prefix, form, size)
