"""What a foreign weights file is found to be, told before anything is read and built by one rule for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.hollow import hollow
from sfumato.checkpoints.keys import KeyReport, check, compare, fit, shapes
from sfumato.checkpoints.native import hash_of
from sfumato.checkpoints.safe import refuse_non_finite
from sfumato.checkpoints.weights import Table, take
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.core.meta import without_numbers
from sfumato.model import Model

_WIDE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _unchanged(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": tensor for name, tensor in theirs.items()}


@dataclass(frozen=True)
class Report:
    """A state dict of a known kind: the model it belongs to, and how its tensors become that model's.

    Args:
        what: the kind of network, in words.
        published: the published network of these shapes, by name; "" for none.
        table: where the tensors lie.
        description: the model, as `Model.from_description` takes it.
        card: default settings.
        notes: what the file does not tell and was assumed.
        to_ours: tensors under their names → under ours, with the part in front; also of tensors without
            numbers.
        taken: how the tensors are copied out of the file.
    """

    what: str
    published: str
    table: Table
    description: dict[str, Any]
    card: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    to_ours: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = _unchanged
    taken: Callable[[str | Path, Table], dict[str, Tensor]] = take

    def keys(self, where: str = "model") -> KeyReport:
        """How the tensors fit the model, by name and shape; nothing is read. `where` is named in errors."""
        with without_numbers():
            expected = shapes(_built(self, where).modules())
        found = self.to_ours(self.table.stand_ins())
        return compare(expected, {name: tuple(tensor.shape) for name, tensor in found.items()})

    def tell(self) -> dict[str, Any]:
        """All of it as plain data, for a reader."""
        table, theirs = self.table, self.table.stand_ins()
        renamed = [name for name in self.to_ours(theirs) if name.removeprefix("network.") not in theirs]
        averaged = {True: "yes (EMA)", False: f"no ({table.place})", None: "the file does not tell"}
        keys: KeyReport | str
        try:
            keys = self.keys()
        except SfumatoError as error:
            keys = str(error)
        return {
            "what": self.what,
            "published": self.published or "none of these shapes",
            "state dict": table.place or "the whole file",
            "averaged": averaged[table.averaged],
            **({"prefix": table.prefix} if table.prefix else {}),
            "renamed": len(renamed),
            "element types": _types(table),
            "keys": str(keys),
            **({"assumed": "; ".join(self.notes)} if self.notes else {}),
            **self.description,
            "card": self.card,
        }

    def read(self, path: str | Path, strict: bool = True) -> Model:
        """The model with its weights, on the CPU, ready to use.

        Weights of several element types, as half-precision training leaves them, become the widest of them.

        Args:
            path: the file this is a report of.
            strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.

        Raises:
            KeyMismatch, NotFinite, CheckpointCorrupt: the weights do not fit, or are damaged.
        """
        where = str(path)
        # Compared without numbers first, so that nothing is read that does not fit.
        check(self.keys(where), where, strict)
        tensors = self.to_ours(self.taken(path, self.table))
        one_type(tensors)
        refuse_non_finite(tensors, where, strict)
        model = hollow(lambda: _built(self, where)) if strict else _built(self, where)
        fit(model.modules(), tensors, where, strict)
        for part in model.modules().values():
            part.eval()
        model.card = {**self.card, "hash": hash_of(path), "source": where}
        return model


def _built(report: Report, where: str) -> Model:
    try:
        return Model.from_description(report.description)
    except SfumatoError:
        raise
    except Exception as error:  # a network may fail in any way on sizes that make no sense
        raise InvalidInput(f"shapes that make no network: {error}", where=where) from error


def one_type(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in the widest of their element types; cast one by one in their dictionary, so that no
    two copies of them all are held.
    """
    held = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(held) < 2:
        return tensors
    # Neither of the halves holds the other.
    wide = torch.float32 if held == set(_WIDE[2:]) else next((each for each in _WIDE if each in held), None)
    for name in tensors if wide is not None else ():
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(wide)
    return tensors


def _types(table: Table) -> dict[str, int]:
    counts: dict[str, int] = {}
    for shape, dtype in table.entries.values():
        name = str(dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + torch.Size(shape).numel()
    return counts
