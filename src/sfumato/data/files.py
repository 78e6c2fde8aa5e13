"""Finding the pictures of a folder tree, in an order people and machines agree on."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAMED = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"}
_ASIDE = {".txt", ".json", ".jsonl", ".md", ".csv"}


def list_pictures(folder: Path) -> list[str]:
    """Paths from the folder, with "/", of every file that is or claims to be a picture, in natural order.

    A file counts by its ending, or, where the ending says nothing, by its first bytes; whether it can be
    read is for the reader to say. Hidden files and folders and links to folders are passed over.
    """
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in files:
            path = Path(place, name)
            if not name.startswith(".") and _is_picture(path):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found, key=natural)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key by which 2.png stands before 10.png; the name itself settles ties."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _is_picture(path: Path) -> bool:
    ending = path.suffix.lower()
    if ending in _NAMED:
        return True
    if ending in _ASIDE:
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return False
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (
        head[:4] == b"RIFF" and head[8:] == b"WEBP"
    )
