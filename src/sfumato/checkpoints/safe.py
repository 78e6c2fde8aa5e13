"""Safetensors files opened with suspicion: every claim of a header is checked before it is used."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import struct
import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from sfumato.checkpoints.kinds import kind_of
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFinite, NotFound

MAX_HEADER = 16 * 2**20
MAX_TENSORS = 65_536
MAX_KEY = 512
MAX_RANK = 8

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types that are read: dense numbers, nothing quantised or sparse."""


@dataclass(frozen=True)
class Entry:
    """One tensor as a header tells of it: element type, shape, and where its bytes lie in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Args:
        entries: tensors by name, in the order of their bytes.
        metadata: the free text that came with them.
        bytes: size of the whole file.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    bytes: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: entry.shape for name, entry in self.entries.items()}


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file, every claim in it checked against the file; no weights are read.

    Raises:
        NotFound: no such file.
        InvalidInput: another kind of file, which is named.
        CheckpointCorrupt: truncated, damaged or hostile; with the sizes expected and found where they differ.
    """
    with _opened(Path(path)) as file:
        return _header(file, Path(path))


def read_tensors(path: str | Path, names: Container[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, on the CPU, in the element types of the file; all, or these.

    The file is read through one handle, straight into the tensors' own memory, and never mapped: a file that
    shrinks or is replaced meanwhile is an error here, where a mapping would kill the process, and once read
    the weights no longer hang on it. Raises as `read_header` does.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(file, path)
        wanted = {n: each for n, each in header.entries.items() if names is None or n in names}
        return {name: _tensor(file, path, name, entry) for name, entry in wanted.items()}


def refuse_non_finite(tensors: Mapping[str, Tensor], where: str, strict: bool = False) -> dict[str, int]:
    """Count NaN and infinite weights by tensor; warn of them, or raise NotFinite when strict."""
    bad: dict[str, int] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.element_size() == 1:
            tensor = tensor.float()
        # A finite sum proves all terms finite, and is many times cheaper than looking at each.
        if not torch.isfinite(tensor.sum(dtype=max(tensor.dtype, torch.float32, key=lambda d: d.itemsize))):
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                bad[name] = count
    if bad:
        listed = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        message = f"NaN or infinite weights in {len(bad)} of {len(tensors)} tensors: {listed}{more}"
        if strict:
            raise NotFinite(message, where=where, do="the file was damaged, or saved after training diverged")
        warnings.warn(f"{where}: {message}", stacklevel=3)
    return bad


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot be opened: {error}", where=str(path)) from None
    if not stat.S_ISREG(mode):
        raise InvalidInput("not a regular file", where=str(path), do="give a .safetensors file")
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise CheckpointCorrupt(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def _header(file: BinaryIO, path: Path) -> Header:
    size = os.fstat(file.fileno()).st_size

    def fail(what: str) -> NoReturn:
        raise CheckpointCorrupt(what, where=str(path), do="copy or download it again")

    start = file.read(512)
    if (kind := kind_of(start)) is not None:
        raise InvalidInput(f"this is {kind.what}, not safetensors", where=str(path), do=kind.do)
    if len(start) < 8:
        fail(f"truncated: expected at least 8 bytes, got {size}")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER:
        fail(f"claims a header of {length:,} bytes, more than the {MAX_HEADER:,} allowed")
    if 8 + length > size:
        fail(f"truncated: expected a header of {length:,} bytes, got {max(size - 8, 0):,}")
    file.seek(8)
    raw = file.read(length)
    if len(raw) != length:
        fail("truncated while it was read")
    if not raw.startswith(b"{"):
        fail("the header is not a JSON object")
    # Counted before parsing, so that a header made to swell in memory never gets to.
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        fail(f"claims more than {MAX_TENSORS:,} tensors")
    if raw.count(b"[") + raw.count(b"{") > 4 * MAX_TENSORS or raw.count(b",") > 16 * MAX_TENSORS:
        fail("the header holds far more than tensors can need")
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        fail("the header is nested too deeply")
    except ValueError as error:
        fail(f"the header is not valid JSON: {_brief(error)}")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        fail("the metadata are not texts by name")
    entries = {}
    for name, claim in parsed.items():
        try:
            entries[name] = _entry(name, claim, 8 + length)
        except ValueError as error:
            fail(f"tensor {name[:80]!a}: {error}")
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    place = 8 + length
    for name, entry in entries.items():
        if entry.begin != place:
            fail(f"tensor {name[:80]!a} {'overlaps another' if entry.begin < place else 'leaves a gap'}")
        place = entry.end
    if place != size:
        word = "truncated" if size < place else "too long"
        fail(f"{word}: expected {place:,} bytes, got {size:,}")
    return Header(entries, metadata, size)


def _entry(name: str, claim: Any, base: int) -> Entry:
    if len(name) > MAX_KEY:
        raise ValueError(f"its name has {len(name):,} characters, more than {MAX_KEY}")
    if "__" in name:
        raise ValueError("a name with __ is refused")
    name.encode()
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected dtype, shape and data_offsets")
    kind, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"element type {str(kind)[:40]!a} is not one of {', '.join(DTYPES)}")
    if not _whole(shape) or len(shape) > MAX_RANK:
        raise ValueError(f"the shape is not a list of at most {MAX_RANK} sizes")
    if not _whole(offsets) or len(offsets) != 2:
        raise ValueError("data_offsets are not two places")
    dtype = DTYPES[kind]
    expected, got = prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if expected != got:
        raise ValueError(f"shape {shape} of {kind} needs {expected} bytes, got {got}")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to be written to while it lives."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def _tensor(file: BinaryIO, path: Path, name: str, entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    size = entry.end - entry.begin
    if not size:
        return tensor
    file.seek(entry.begin)
    got = file.readinto(memory_of(tensor))  # type: ignore[attr-defined]
    if got != size:
        raise CheckpointCorrupt(
            f"shrank while it was read: tensor {name!r} expected {size:,} bytes, got {got:,}",
            where=str(path),
        )
    if entry.dtype is torch.bool and int(tensor.view(torch.uint8).max()) > 1:
        raise CheckpointCorrupt(f"tensor {name!r} holds neither true nor false", where=str(path))
    return tensor


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _brief(error: ValueError) -> str:
    text = getattr(error, "msg", None) or getattr(error, "reason", None) or str(error)
    return str(text)[:80]
