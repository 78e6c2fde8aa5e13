"""What conditioners of text have in common: one text a row, or a clear refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.core.errors import InvalidInput

NAMES = ("prompt", "caption")
"""The inputs that are texts, the first said of which is read."""


def texts(count: int, inputs: Mapping[str, Any]) -> list[str | None]:
    """One text a row: a text for all, or a list with one, or None, for each; a caption if no prompt is said.

    Raises:
        InvalidInput: another number of rows, or what is no text.
    """
    check_texts({name: value for name, value in inputs.items() if name in NAMES})
    rows: list[str | None] = [None] * count
    for name in NAMES:
        given = inputs.get(name)
        said = list(given) if isinstance(given, list | tuple) else [given] * count
        if len(said) != count:
            raise InvalidInput(f"{len(said)} texts for {count} pictures", where=name)
        rows = [text if row is None else row for row, text in zip(rows, said, strict=True)]
    return rows


def check_texts(inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that are not heeded, and what is no text.

    Raises:
        InvalidInput: either of these.
    """
    for name, value in inputs.items():
        if name not in NAMES:
            if value is not None:
                raise InvalidInput(
                    "this model heeds no such input", where=name, do="it is told prompt, a text"
                )
            continue
        for text in value if isinstance(value, list | tuple) else [value]:
            if text is not None and not isinstance(text, str):
                raise InvalidInput(
                    f"{type(text).__name__} is no text", where=name, do="give a text, or one for each picture"
                )
