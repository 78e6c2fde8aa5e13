"""Files of torch.save, of which only tensors, numbers, texts, lists and dictionaries are read."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import torch
from torch import Tensor

from sfumato.checkpoints import pickles
from sfumato.checkpoints.kinds import kind_of
from sfumato.checkpoints.safe import DTYPES, MAX_RANK, MAX_TENSORS, memory_of
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, SfumatoError

MAX_LIST = 64 * 2**20
"""Most bytes of the pickle that lists the tensors; those of the largest models have less than one MiB."""

MAX_DEPTH = 16

_DTYPES = frozenset(DTYPES.values())
_PIECE = 2**22
_AGAIN = "copy or download it again"
_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""What files of PyTorch before 1.6 begin with: a pickle of one number."""


def is_torch(path: str | Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC))
    except (OSError, ValueError):
        return False
    return start == _MAGIC or start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def read_torch(path: str | Path, mapped: bool = False, hollow: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU; nothing in it is ever run.

    Checksums are verified where the file has them, since PyTorch 1.6.

    Args:
        path: the file.
        mapped: leave tensors in the file, which is mapped and not read, to copy some of them. The file must
            not shrink meanwhile. Checksums of tensors are then left to `verify`.
        hollow: tensors without numbers (meta), for looking at names and shapes; nothing is mapped.

    Raises:
        NotFound: no such file.
        InvalidInput: another kind of file, or one that holds more than tensors and plain data.
        CheckpointCorrupt: it is damaged.
    """
    return _read(Path(path), "hollow" if hollow else "mapped" if mapped else "whole")


def read_state(path: str | Path, place: str = "", names: Container[str] | None = None) -> dict[str, Tensor]:
    """Tensors of one state dict of a file of torch.save, by name, each in memory of its own; all, or these.

    Nothing else is read, and nothing mapped: records go straight into the memory of the tensors, and their
    checksums are verified on the way. Files from before PyTorch 1.6 are read whole.

    Args:
        path: the file.
        place: the way to the state dict inside, such as "ema"; "" where the file is nothing else.
        names: of the tensors wanted.

    Raises: as `read_torch` does.
    """
    path = Path(path)
    with _opened(path) as file:
        zipped = file.read(2) == b"PK"
    held = _read(path, "hollow" if zipped else "whole")
    for key in place.split(".") if place else ():
        held = held.get(key) if isinstance(held, Mapping) else None
    entries = held.items() if isinstance(held, Mapping) else ()
    tensors = {n: t.detach() for n, t in entries if isinstance(t, Tensor) and (names is None or n in names)}
    return _filled(path, tensors) if zipped else _parted(tensors)


def _read(path: Path, how: Literal["whole", "mapped", "hollow"]) -> Any:
    where = str(path)
    with _opened(path) as file:
        start = file.read(512)
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        zipped = start.startswith(b"PK")
        if zipped:
            _check_zip(file, size, where, every=how == "whole")
        elif start.startswith(_MAGIC):
            _check_old(file, size, where)
        else:
            kind = kind_of(start)
            raise InvalidInput(
                f"this is {kind.what if kind else 'no file of torch.save'}",
                where=where,
                do=kind.do if kind else "give a .pt or .safetensors file",
            )
    found = _loaded(path, how if zipped else "whole", where)
    for name, tensor in _tensors(found, where):
        _check_tensor(name, tensor, where)
    return found


def verify(path: str | Path) -> None:
    """Check all checksums of a file of torch.save; those before PyTorch 1.6 have none.

    Raises:
        CheckpointCorrupt: one does not fit.
    """
    with _opened(Path(path)) as file:
        if file.read(2) == b"PK":
            _check_zip(file, os.fstat(file.fileno()).st_size, str(path), every=True)


def _opened(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidInput("not a regular file", where=str(path), do="give a .pt or .safetensors file")
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot be opened: {error}", where=str(path)) from None


def _loaded(path: Path, how: str, where: str) -> Any:
    import argparse

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            device = "meta" if how == "hollow" else "cpu"
            return torch.load(path, map_location=device, weights_only=True, mmap=how == "mapped")
    except Exception as error:  # PyTorch may fail in any way on what is damaged
        what = " ".join(str(error).split())
        if type(error).__name__ == "UnpicklingError":
            raise pickles.refused(f"what PyTorch refuses ({what[:60]})", where) from None
        raise CheckpointCorrupt(f"cannot be read: {what[:120]}", where=where, do=_AGAIN) from None


def _filled(path: Path, hollow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the numbers of those that only know where in the file theirs are."""
    where = str(path)
    places: dict[int, list[str]] = {}
    for name, tensor in hollow.items():
        places.setdefault(getattr(tensor.untyped_storage(), "_checkpoint_offset", -1), []).append(name)
    found: dict[str, Tensor] = {}
    try:
        with _opened(path) as file, zipfile.ZipFile(path) as archive:
            records = {_begin(file, each): each for each in archive.infolist()}
            for place in sorted(places):
                names = places[place]
                if place not in records:
                    raise CheckpointCorrupt("changed while it was read", where=where)
                size = max(hollow[name].untyped_storage().nbytes() for name in names)
                with archive.open(records[place]) as stream:
                    memory = _drawn(stream, size, where)
                for name in names:
                    found[name] = _own(hollow[name], memory, len(names) > 1)
    except SfumatoError:
        raise
    except Exception as error:  # zipfile may fail in any way on what is damaged
        raise _damaged(error, where) from None
    return {name: found[name] for name in hollow}


def _begin(file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of a record begin, behind a name and a filling of their own lengths."""
    file.seek(record.header_offset + 26)
    return record.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _drawn(stream: IO[bytes], size: int, where: str) -> Tensor:
    """So many bytes of a record, read to its end, where its checksum is verified."""
    memory = torch.empty(size, dtype=torch.uint8)
    view, done = memory_of(memory), 0
    while done < size:
        got = stream.read(min(_PIECE, size - done))
        if not got:
            raise CheckpointCorrupt(f"a record of {done:,} bytes, expected {size:,}", where=where, do=_AGAIN)
        view[done : done + len(got)] = got
        done += len(got)
    while stream.read(_PIECE):
        pass
    return memory


def _own(like: Tensor, memory: Tensor, shared: bool) -> Tensor:
    tensor = memory.view(like.dtype).as_strided(like.shape, like.stride(), like.storage_offset())
    whole = tensor.is_contiguous() and tensor.numel() * tensor.element_size() == len(memory)
    return tensor if whole and not shared else tensor.clone(memory_format=torch.contiguous_format)


def _parted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, nor keep more than their own."""
    found: dict[str, Tensor] = {}
    held: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and tensor.numel() * tensor.element_size() == storage.nbytes()
        shared = storage.data_ptr() in held
        found[name] = tensor if whole and not shared else tensor.clone(memory_format=torch.contiguous_format)
        held.add(storage.data_ptr())
    return found


def _damaged(error: Exception, where: str) -> CheckpointCorrupt:
    what = str(error)[:80] or type(error).__name__
    return CheckpointCorrupt(f"this zip archive is damaged or cut short: {what}", where=where, do=_AGAIN)


def _check_zip(file: BinaryIO, size: int, where: str, every: bool) -> None:
    """Refuse an archive that is not as torch.save makes them, or whose bytes are not those it was made of."""
    try:
        with zipfile.ZipFile(file) as archive:
            inside = archive.infolist()
            pickle = _listing(inside, size, where)
            with archive.open(pickle) as record:
                # A checksum is verified at the end of its record.
                claimed = pickles.check(io.BytesIO(record.read()), where)
            _check_records(claimed, inside, where)
            for each in inside:
                if each is not pickle and (every or "/data/" not in each.filename):
                    with archive.open(each) as record:
                        while record.read(_PIECE):
                            pass
    except SfumatoError:
        raise
    except Exception as error:  # zipfile may fail in any way on what is damaged
        raise _damaged(error, where) from None


def _listing(inside: list[zipfile.ZipInfo], size: int, where: str) -> zipfile.ZipInfo:
    """The record that lists the tensors, once the archive is as torch.save makes them."""
    names = [each.filename for each in inside]
    roots = {name.partition("/")[0] for name in names}
    if f"{next(iter(roots), '')}/constants.pkl" in names:
        raise InvalidInput(
            "this is a TorchScript program, not weights",
            where=where,
            do="save its state dict, as safetensors or by torch.save",
        )
    found = [each for each in inside if each.filename.endswith("/data.pkl") and each.filename.count("/") == 1]
    if len(found) != 1 or len(roots) != 1:
        raise InvalidInput(
            "this is a zip archive, but no file of torch.save",
            where=where,
            do="unpack it if weights are inside",
        )
    if len(set(names)) != len(names) or len(names) > MAX_TENSORS + 16:
        raise CheckpointCorrupt(f"{len(names):,} records, {len(set(names)):,} of them distinct", where=where)
    for each in inside:
        if each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
            raise InvalidInput(
                "its records are compressed or encrypted, as torch.save leaves none",
                where=where,
                do="save it again with torch.save",
            )
        # PyTorch takes such a record for a folder, reads nothing, and gives memory as it happens to be.
        if each.external_attr & 0x10 or each.filename.endswith("/"):
            raise CheckpointCorrupt(f"record {each.filename[:80]!r} is a folder", where=where, do=_AGAIN)
    if (total := sum(each.file_size for each in inside)) > size:
        raise CheckpointCorrupt(f"records of {total:,} bytes in {size:,}", where=where, do=_AGAIN)
    if found[0].file_size > MAX_LIST:
        raise CheckpointCorrupt(f"a list of tensors of {found[0].file_size:,} bytes", where=where)
    return found[0]


def _check_records(claimed: Mapping[str, int], inside: list[zipfile.ZipInfo], where: str) -> None:
    """Every tensor's numbers are in their record; mapped, they would be read from whatever lies behind it."""
    held = {each.filename.partition("/data/")[2]: each.file_size for each in inside}
    for record, size in claimed.items():
        if size > held.get(record, -1):
            raise CheckpointCorrupt(
                f"numbers of {size:,} bytes where record {record[:20]!r} has {held.get(record, 0):,}",
                where=where,
                do=_AGAIN,
            )


def _check_old(file: BinaryIO, size: int, where: str) -> None:
    """The pickles before the tensors: a number, a version, the machine, what is held, and its order."""
    for _ in range(5):
        claimed = sum(pickles.check(file, where).values())
        if claimed > size:
            raise CheckpointCorrupt(f"tensors of {claimed:,} bytes in {size:,}", where=where, do=_AGAIN)
        if file.tell() > MAX_LIST:
            raise CheckpointCorrupt("a list of tensors of more bytes than any has", where=where)


def _tensors(found: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested plain data, by the way there; nests that are shared are gone through once."""
    left: list[tuple[str, Any, int]] = [("", found, 0)]
    seen: set[int] = set()
    while left:
        name, value, depth = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            if depth >= MAX_DEPTH:
                raise CheckpointCorrupt("it is nested too deeply", where=where)
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{name}.{key}" if name else str(key), item, depth + 1) for key, item in pairs]


def _check_tensor(name: str, tensor: Tensor, where: str) -> None:
    """Refuse what is not of dense numbers, all of which are in the file."""
    plain = (
        tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type in ("cpu", "meta")
    )
    if not plain or tensor.dtype not in _DTYPES or tensor.ndim > MAX_RANK:
        raise InvalidInput(f"tensor {name[:80]!r} is not of dense numbers", where=where)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointCorrupt(
            f"tensor {name[:80]!r} of shape {list(tensor.shape)} has more places than numbers", where=where
        )
