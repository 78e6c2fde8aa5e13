"""Files of torch.save, of which only tensors, numbers, texts, lists and dictionaries are read."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.checkpoints import pickles
from sfumato.checkpoints.kinds import kind_of
from sfumato.checkpoints.safe import DTYPES, MAX_RANK, MAX_TENSORS
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, SfumatoError

MAX_LIST = 64 * 2**20
"""Most bytes of the pickle that lists the tensors; those of the largest models have less than one MiB."""

MAX_DEPTH = 16

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


def read_torch(path: str | Path, mapped: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU; nothing in it is ever run.

    Checksums are verified where the file has them, since PyTorch 1.6.

    Args:
        path: the file.
        mapped: leave tensors in the file, which is mapped and not read: for looking at names and shapes, or
            to copy some of them. The file must not shrink meanwhile. Checksums of tensors are then left to
            `verify`.

    Raises:
        NotFound: no such file.
        InvalidInput: another kind of file, or one that holds more than tensors and plain data.
        CheckpointCorrupt: it is damaged.
    """
    path = Path(path)
    where = str(path)
    with _opened(path) as file:
        start = file.read(512)
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        zipped = start.startswith(b"PK")
        if zipped:
            _check_zip(file, size, where, every=not mapped)
        elif start.startswith(_MAGIC):
            _check_old(file, size, where)
        else:
            kind = kind_of(start)
            raise InvalidInput(
                f"this is {kind.what if kind else 'no file of torch.save'}",
                where=where,
                do=kind.do if kind else "give a .pt or .safetensors file",
            )
    found = _loaded(path, mapped and zipped, where)
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


def _loaded(path: Path, mapped: bool, where: str) -> Any:
    import argparse

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # PyTorch may fail in any way on what is damaged
        what = " ".join(str(error).split())
        if type(error).__name__ == "UnpicklingError":
            raise pickles.refused(f"what PyTorch refuses ({what[:60]})", where) from None
        raise CheckpointCorrupt(f"cannot be read: {what[:120]}", where=where, do=_AGAIN) from None


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
                        while record.read(2**22):
                            pass
    except SfumatoError:
        raise
    except Exception as error:  # zipfile may fail in any way on what is damaged
        what = str(error)[:80] or type(error).__name__
        raise CheckpointCorrupt(
            f"this zip archive is damaged or cut short: {what}", where=where, do=_AGAIN
        ) from None


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
    plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
    if not plain or tensor.dtype not in DTYPES.values() or tensor.ndim > MAX_RANK:
        raise InvalidInput(f"tensor {name[:80]!r} is not of dense numbers", where=where)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointCorrupt(
            f"tensor {name[:80]!r} of shape {list(tensor.shape)} has more places than numbers", where=where
        )
