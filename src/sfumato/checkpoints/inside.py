"""What comes from others, held to be what it says: folders without stray links, settings that make sense."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from sfumato.core.errors import CheckpointCorrupt, InvalidInput, SfumatoError

P = ParamSpec("P")
T = TypeVar("T")

_READ = (".json", ".txt", ".md", ".safetensors", ".bin", ".pt", ".ckpt", ".yaml")
"""Endings of what is read of a model's folder; other files, whatever they are, nobody opens."""


def refuse_strays(folder: Path) -> None:
    """Refuse a model's folder of which a file, or one of a part's folder, is a device or lies elsewhere.

    A folder from anywhere may hold links to anything. Those of the hub's cache lead from a snapshot to the
    blobs beside it, and may.

    Raises:
        InvalidInput: what it is, and where it leads.
    """
    root = Path(os.path.realpath(folder))
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    try:
        entries = [*os.scandir(folder)]
        parts = [entry for entry in entries if os.path.isdir(entry.path)]
        held = [*entries, *(entry for part in parts for entry in os.scandir(part.path))]
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=str(folder)) from None
    for entry in held:
        if not entry.name.endswith(_READ):
            continue
        place = Path(os.path.realpath(entry.path))
        if not place.is_relative_to(root):
            raise InvalidInput(
                f"it leads out of the model's folder, to {place}",
                where=entry.path,
                do="copy the file here, if it is meant to be",
            )
        # A link to nothing is a missing file, which readers tell better.
        if os.path.lexists(place) and not os.path.isfile(place):
            raise InvalidInput("not a regular file", where=entry.path, do="copy the folder again")


def sensible(report: Callable[P, T]) -> Callable[P, T]:
    """A reader of settings that others wrote, whose errors of Python are those of settings without sense."""

    @functools.wraps(report)
    def read(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return report(*args, **kwargs)
        except SfumatoError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointCorrupt(
                f"settings or weights that make no sense ({type(error).__name__}: {str(error)[:80]})",
                where=str(args[0] if args else "model"),
                do="copy or download it again",
            ) from error

    return read
