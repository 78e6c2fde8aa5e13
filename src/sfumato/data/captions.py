"""What stands beside a picture: its caption and other fields, from sidecar files or a metadata.jsonl."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from sfumato.core.errors import InvalidInput
from sfumato.data.files import natural

_ALIAS = "text"  # what caption is called in many a metadata.jsonl


class CaptionFiles:
    """Fields of each picture of a folder, by its path from the folder.

    The sources, later ones winning field by field: a line of a `metadata.jsonl` (its `file_name` is relative
    to that file's own folder; any further fields), `<picture>.json` (an object), `<picture>.txt` (caption).

    Args:
        folder: the root of the tree.
        read: False reads nothing.
    """

    def __init__(self, folder: Path, read: bool = True) -> None:
        self.folder, self.read = folder, read
        self.problems: list[tuple[str, str]] = []
        self._lines: dict[str, dict[str, Any]] = {}
        if read:
            paths = (path.relative_to(folder).as_posix() for path in folder.rglob("metadata.jsonl"))
            for name in sorted(paths, key=natural):
                self._read_lines(name)

    def of(self, name: str) -> dict[str, Any]:
        """The fields of a picture; empty where nothing is said.

        Raises:
            InvalidInput: a sidecar file that is not UTF-8, or not a JSON object.
        """
        if not self.read:
            return {}
        fields = dict(self._lines.get(_normal(name), {}))
        sidecar = (self.folder / name).with_suffix(".json")
        if sidecar.is_file():
            fields |= _object(_text(sidecar), sidecar.name)
        sidecar = sidecar.with_suffix(".txt")
        if sidecar.is_file():
            fields["caption"] = _text(sidecar).strip()
        return fields

    def _read_lines(self, name: str) -> None:
        place = name.rpartition("/")[0]
        for number, line in enumerate(_text(self.folder / name).splitlines(), 1):
            if not line.strip():
                continue
            where = f"{name} line {number}"
            try:
                fields = _object(line, where)
            except InvalidInput as error:
                self.problems.append((where, error.what))
                continue
            file_name = fields.pop("file_name", None)
            if not isinstance(file_name, str):
                self.problems.append((where, "has no file_name"))
                continue
            key = _normal(f"{place}/{file_name}" if place else file_name)
            if key in self._lines:
                self.problems.append((where, f"names {file_name} a second time"))
            else:
                self._lines[key] = fields


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read as UTF-8 text: {error}", where=str(path)) from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} is not JSON: {error}", where=where) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is not a JSON object", where=where)
    if _ALIAS in value and "caption" not in value:
        value["caption"] = value.pop(_ALIAS)
    return value


def _normal(name: str) -> str:
    """Accents composed: some file systems hand them back taken apart."""
    return unicodedata.normalize("NFC", name.removeprefix("./"))
