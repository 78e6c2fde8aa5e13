"""A model put together of several state dicts: those of a folder's files, or parts of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.keys import KeyReport, check, compare, fit, shapes
from sfumato.checkpoints.native import hash_of
from sfumato.checkpoints.report import one_type
from sfumato.checkpoints.safe import read_header, refuse_non_finite
from sfumato.checkpoints.torch_file import is_torch
from sfumato.checkpoints.weights import copy_out, look
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.core.meta import without_numbers
from sfumato.model import Model

Entries = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """Tensors that belong together, and what they are called here.

    Args:
        name: of the piece, for reports: unet, vae.
        entries: shape and element type by the name `convert` knows.
        stored: (file, name in the file) by the same.
        convert: tensors under those names → under ours, with the model's part in front; also of tensors
            without numbers.
        place: the way to the state dict inside a file of torch.save.
    """

    name: str
    entries: Entries
    stored: Mapping[str, tuple[Path, str]]
    convert: Convert
    place: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes under our names."""
        hollow = {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in self.entries.items()}
        return {name: tuple(tensor.shape) for name, tensor in self.convert(hollow).items()}

    def take(self) -> dict[str, Tensor]:
        """The tensors under our names, copied out of their files; no others are read."""
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(file for file, _ in self.stored.values()):
            names = {there: here for here, (held, there) in self.stored.items() if held == file}
            for there, tensor in copy_out(file, self.place, names.keys()).items():
                found[names[there]] = tensor
        return self.convert(found)


@dataclass(frozen=True)
class Assembly:
    """What a folder or file of several pieces is found to be, before anything of it is read.

    Args:
        what: the kind of model, in words.
        where: the folder or file.
        description: the model, as `Model.from_description` takes it.
        pieces: its weights.
        card: default settings.
        notes: what was assumed, and what was left out.
    """

    what: str
    where: Path
    description: dict[str, Any]
    pieces: tuple[Piece, ...]
    card: dict[str, Any]
    notes: tuple[str, ...] = ()

    def keys(self) -> KeyReport:
        """How the weights fit the model, by name and shape."""
        found: dict[str, tuple[int, ...]] = {}
        for piece in self.pieces:
            found |= piece.shapes
        return compare(shapes(self._hollow().modules()), found)

    def tell(self) -> dict[str, Any]:
        """All of it as plain data, for a reader."""
        keys: KeyReport | str
        try:
            keys = self.keys()
        except SfumatoError as error:
            keys = str(error)
        held = [entry for piece in self.pieces for entry in piece.entries.values()]
        return {
            "what": self.what,
            "pieces": {piece.name: _counted(piece.entries) for piece in self.pieces},
            "parameters": sum(torch.Size(shape).numel() for shape, _ in held),
            "bytes": sum(file.stat().st_size for file in self._files()),
            "keys": str(keys),
            **({"notes": "; ".join(self.notes)} if self.notes else {}),
            **_brief(self.description),
            "card": self.card,
        }

    def read(self, strict: bool = True) -> Model:
        """The model with its weights, on the CPU, ready to use; each part in the widest of its element types.

        Raises:
            KeyMismatch, NotFinite, CheckpointCorrupt: the weights do not fit, or are damaged.
        """
        where = str(self.where)
        # Compared without numbers first, so that nothing is read that does not fit.
        check(self.keys(), where, strict)
        tensors: dict[str, Tensor] = {}
        for piece in self.pieces:
            taken = one_type(piece.take())
            refuse_non_finite(taken, where, strict)
            tensors |= taken
        if strict:
            model = self._hollow()
            _fill_markers(model)
        else:
            model = _built(self.description, where)
        fit(model.modules(), tensors, where, strict)
        for part in model.modules().values():
            part.eval()
        model.card = {**self.card, "hash": self._hash(), "source": where}
        return model

    def _hollow(self) -> Model:
        """The model without numbers, which spares drawing them."""
        with without_numbers():
            return _built(self.description, str(self.where))

    def _files(self) -> list[Path]:
        return sorted({file for piece in self.pieces for file, _ in piece.stored.values()})

    def _hash(self) -> str:
        """Of one file its sha256; of several that of theirs, one a line in the order of their paths."""
        files = self._files()
        if len(files) == 1:
            return hash_of(files[0])
        return hashlib.sha256("\n".join(map(hash_of, files)).encode()).hexdigest()


def entries_of(file: Path, place: str = "") -> Entries:
    """Shapes and element types of a file of weights, by name; nothing of it is read."""
    if not is_torch(file):
        return {name: (each.shape, each.dtype) for name, each in read_header(file).entries.items()}
    for table in look(file):
        if table.place == place:
            return {table.prefix + name: entry for name, entry in table.entries.items()}
    raise InvalidInput("it holds no weights where they were looked for", where=str(file))


def lenient(convert: Convert) -> Convert:
    """A conversion that passes names it does not know on as they are, for reports to tell them."""

    def work(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        left, odd = dict(theirs), dict[str, Tensor]()
        while True:
            try:
                return {**convert(left), **odd}
            except InvalidInput as error:
                if error.where not in left:
                    raise
                odd[error.where] = left.pop(error.where)

    return work


def under(prefix: str, convert: Convert) -> Convert:
    """A conversion whose names stand under a prefix."""
    return lambda theirs: {prefix + name: tensor for name, tensor in convert(theirs).items()}


def _built(description: dict[str, Any], where: str) -> Model:
    try:
        return Model.from_description(description)
    except SfumatoError:
        raise
    except Exception as error:  # a network may fail in any way on sizes that make no sense
        raise InvalidInput(f"settings that make no model: {error}", where=where) from error


def _fill_markers(model: Model) -> None:
    """Give buffers that only mark a device, and are in no file, theirs."""
    for part in model.modules().values():
        for module in part.modules():
            held = dict(module.named_buffers(recurse=False))
            for name, buffer in held.items():
                if buffer.is_meta and not buffer.numel():
                    module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), False)


def _counted(entries: Entries) -> str:
    counts: dict[str, int] = {}
    for shape, dtype in entries.values():
        name = str(dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + torch.Size(shape).numel()
    types = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    return f"{len(entries)} tensors: {types}"


def _brief(value: Any) -> Any:
    """A description without vocabularies, which nobody reads."""
    if isinstance(value, Mapping):
        spoken = value.keys() - ({"vocabulary", "merges"} if "merges" in value else set())
        return {key: _brief(each) for key, each in value.items() if key in spoken}
    return [_brief(each) for each in value] if isinstance(value, list | tuple) else value
