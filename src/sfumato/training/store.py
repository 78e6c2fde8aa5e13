"""Store: tensors by what they were made from, in one file that is mapped into memory."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.core.atomic import write_atomically, write_text
from sfumato.core.errors import InvalidInput


class Store:
    """Tensors by the hash of what they were made from, in a memory-mapped file with an index beside it.

    Args:
        path: of the file; the index is `path`.json.

    Raises:
        InvalidInput: there is no such file, or it is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        try:
            index = json.loads(_index(path).read_text("utf-8"))
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._entries: dict[str, list[Any]] = index["entries"]
            if digest != index["sha256"]:
                raise ValueError("another content than was written")
            self._bytes = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InvalidInput(f"is no whole cache: {error}", where=str(path)) from error

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Tensor | None:
        """What is kept under a key."""
        if (entry := self._entries.get(key)) is None:
            return None
        start, shape, dtype = entry
        kind: torch.dtype = getattr(torch, dtype)
        flat = self._bytes[start : start + math.prod(shape) * kind.itemsize]
        return flat.view(kind).view(shape)

    @staticmethod
    def write(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors under their keys, as one act, one after another as they come."""
        entries: dict[str, list[Any]] = {}
        digest = hashlib.sha256()

        def fill(temporary: Path) -> None:
            place = 0
            with temporary.open("wb") as file:
                for key, tensor in tensors:
                    if key in entries:
                        continue
                    # Every tensor begins at a multiple of 8 bytes, where numbers of any kind may lie.
                    held = tensor.detach().cpu().contiguous()
                    entries[key] = [place, list(held.shape), str(held.dtype).removeprefix("torch.")]
                    for part in (raw(held), bytes(-held.nbytes % 8)):
                        digest.update(part)
                        file.write(part)
                        place += len(part)

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fill)
        write_text(_index(path), json.dumps({"sha256": digest.hexdigest(), "entries": entries}))


def raw(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    found = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    # The bytes of what nobody else holds would be freed while they are read.
    found.held = tensor  # type: ignore[attr-defined]
    return found


def _index(path: Path) -> Path:
    return path.with_name(path.name + ".json")
