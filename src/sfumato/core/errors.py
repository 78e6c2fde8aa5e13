"""Errors a user can act on: each says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class SfumatoError(Exception):
    """One clear sentence for a user: what is wrong, where, and what to do.

    Args:
        what: the fault, in words.
        where: the file, field or module it was found in.
        do: the next thing to try.
    """

    code = "error"
    exit_code = 2

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        what, where, do = (_short(text, most) for text, most in ((what, 6000), (where, 300), (do, 400)))
        self.what, self.where, self.do = what, where, do
        super().__init__(": ".join(part for part in (where, what) if part) + (f" ({do})" if do else ""))


class InvalidInput(SfumatoError):
    """An argument, file or setting that cannot be used as given."""

    code = "invalid_input"


class NotFound(SfumatoError):
    """A name or path that does not exist."""

    code = "not_found"


class MissingExtra(SfumatoError):
    """An optional dependency that is not installed."""

    code = "missing_extra"


class CheckpointCorrupt(SfumatoError):
    """A weights or checkpoint file that is damaged, truncated or not what it claims to be."""

    code = "checkpoint_corrupt"


class KeyMismatch(SfumatoError):
    """Weights whose names or shapes do not fit the network."""

    code = "key_mismatch"


class RunLocked(SfumatoError):
    """A run directory that another process is writing to."""

    code = "run_locked"


class RunChanged(SfumatoError):
    """A run resumed with other data, settings or code than it was started with."""

    code = "run_changed"


class NotFinite(SfumatoError):
    """A NaN or infinity where numbers were expected."""

    code = "not_finite"
    exit_code = 1


def _short(text: str, most: int) -> str:
    """One line that a reader takes in, of a text into which a file may have put anything."""
    line = " ".join(text.splitlines())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A "did you mean" clause for an unknown name, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known[:40]) + (", …" if len(known) > 40 else "")


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a name; NotFound says that no `what` is called so, and the nearest."""
    if name not in table:
        raise NotFound(f"no {what} is called {name!r}", where="name", do=nearest(name, table))
    return table[name]
