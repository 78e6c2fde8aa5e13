"""The command that writes embedded data sets as ordinary files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.data.emoji import unpack as unpack_emoji
from sfumato.data.scenes import Scenes
from sfumato.generation.images import to_image


def unpack(name: str, out: Path, count: int, seed: int) -> str:
    """Write a data set into a new or empty folder; says how much was written.

    Args:
        name: "emoji", or "scenes".
        out: the folder.
        count: of scenes.
        seed: of the scenes.

    Raises:
        NotFound: no such data set.
        InvalidInput: the folder holds something already, or cannot be written.
    """
    writers: dict[str, Callable[[], int]] = {
        "emoji": lambda: unpack_emoji(out),
        "scenes": lambda: write_scenes(out, count, seed),
    }
    if name not in writers:
        raise NotFound(f"no embedded data set is called {name!r}", do=nearest(name, writers))
    try:
        return f"{writers[name]()} pictures in {out}"
    except OSError as error:
        raise InvalidInput(f"cannot be written: {error.strerror or error}", where=str(out)) from error


def write_scenes(out: Path, count: int, seed: int) -> int:
    """Write scenes as pictures/, with a metadata.jsonl of captions and boxes, and masks/.

    A pixel of a mask is 0 on the ground, else 1 + the paint order of the object seen there. The folder is
    whole or absent.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput("is not empty", where=str(out), do="name a new folder")
    scenes = Scenes(count)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for folder in ("pictures", "masks"):
            (draft / folder).mkdir()
        with (draft / "pictures" / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for index in range(count):
                item, name = scenes.load(index, seed), f"{index + 1:06d}.png"
                to_image(item.image).save(draft / "pictures" / name)
                seen = sum((order + 1) * mask.float() for order, mask in enumerate(item.inputs["mask"]))
                to_image(seen[None] / 127.5 - 1).save(draft / "masks" / name)
                told = {key: item.inputs[key] for key in ("caption", "objects")}
                lines.write(json.dumps({"file_name": name, **told}, ensure_ascii=False) + "\n")
        draft.chmod(0o755)
        draft.replace(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return count
