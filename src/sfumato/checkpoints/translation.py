"""Translation: names and layouts of foreign weights to ours and back, as a table that loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.checkpoints.keys import KeyReport, check


@dataclass(frozen=True)
class Layout:
    """How tensors of theirs make one of ours, and the inverse.

    Args:
        join: theirs, in the order of the names → ours.
        split: ours → theirs.
    """

    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]


SAME = Layout(lambda given: given[0], lambda mine: [mine])
SQUEEZED = Layout(lambda given: given[0].squeeze(-1), lambda mine: [mine[..., None]])
"""A convolution over places (.., 1, 1) that is one over a row of them (.., 1) here."""
TRANSPOSED = Layout(lambda given: given[0].T, lambda mine: [mine.T])
STACKED = Layout(lambda given: torch.cat(given), lambda mine: list(mine.chunk(3)))
"""Three, for q, k and v, that are one here."""


@dataclass(frozen=True)
class Row:
    """One tensor of ours and the names of those of theirs it is made of."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = SAME


def both(ours: str, theirs: str, layout: Layout = SAME) -> list[Row]:
    """Rows of a module's weight, in this layout, and bias."""
    return [
        Row(f"{ours}.weight", (f"{theirs}.weight",), layout),
        Row(f"{ours}.bias", (f"{theirs}.bias",)),
    ]


def to_ours(table: Iterable[Row], theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises:
        KeyMismatch: one is missing, or one is left over.
    """
    rows = list(table)
    wanted = [name for row in rows for name in row.theirs]
    report = KeyReport(
        matched=tuple(name for name in wanted if name in theirs),
        missing=tuple(name for name in wanted if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in set(wanted)),
        misshapen=(),
    )
    check(report, where)
    return translated(rows, theirs)


def translated(table: Iterable[Row], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names where all of a row is there, else under theirs, for reports to tell."""
    left = dict(theirs)
    found: dict[str, Tensor] = {}
    for row in table:
        if all(name in left for name in row.theirs):
            try:
                found[row.ours] = row.layout.join([left[name] for name in row.theirs]).contiguous()
            except (RuntimeError, IndexError):
                continue  # shapes that no such row has
            for name in row.theirs:
                del left[name]
    return found | left


def to_theirs(table: Iterable[Row], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_ours`: our tensors under their names and in their layouts."""
    found: dict[str, Tensor] = {}
    for row in table:
        parts = row.layout.split(ours[row.ours])
        found |= {name: part.contiguous() for name, part in zip(row.theirs, parts, strict=True)}
    return found
