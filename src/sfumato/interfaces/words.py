"""Words of the command line, as plain data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.checkpoints.embedded import DEFAULT, embedded
from sfumato.core.errors import InvalidInput

_ENDINGS = (".json", ".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pkl")


def part(text: str | None, where: str) -> Any:
    """A name, a number, or YAML of dictionaries and lists."""
    if text is None:
        return None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidInput(f"{text!r} is neither a name nor a dictionary", where=where) from None


def spoken(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The words that are none of a command's own options: [MODEL] [PROMPT] and --name value or --name=value.

    Without a model it is the embedded one. Of one word before the options a model is what is there, what has
    the name of an embedded one, or what looks like a path; all else is a prompt.

    Returns:
        Where the model is, and its inputs.

    Raises:
        InvalidInput: more words, an option without a value, or a prompt said twice.
    """
    found: dict[str, Any] = {}
    rest, before = list(words), []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            before.append(word)
            continue
        name, sign, value = word[2:].partition("=")
        if not sign:
            if not rest:
                raise InvalidInput("needs a value", where=word)
            value = rest.pop(0)
        _add(found, name.replace("-", "_"), value)
    place = before.pop(0) if len(before) > 1 or (before and is_place(before[0])) else DEFAULT
    stray = [word for word in before if word.startswith("-")] + before[1:]
    if stray:
        do = "a prompt stands in quotes, inputs are --name value"
        raise InvalidInput(f"unexpected {stray[0]!r}", where="words", do=do)
    return place, prompted(found, before[0] if before else None)


def is_place(text: str) -> bool:
    """Whether a text says where a model is, and not what to draw."""
    try:
        exists = Path(text).exists()
    except (OSError, ValueError):
        return False
    looks = " " not in text and (os.sep in text or "/" in text or text.lower().endswith(_ENDINGS))
    return exists or looks or embedded(text) is not None


def prompted(said: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """Inputs with the prompt that stood before the options among them."""
    if prompt is None:
        return said
    if "prompt" in said:
        raise InvalidInput(
            "is said twice", where="prompt", do="say it once, in quotes if it is of several words"
        )
    return {**said, "prompt": prompt}


def edit(edit: Any, image: str | None, mask: str | None, strength: float | None) -> Any:
    """The edit that --edit says, or that --image, --mask and --strength come to."""
    short = {"image": image, "mask": mask, "strength": strength}
    said = {name: value for name, value in short.items() if value is not None}
    if edit is None and said:
        if image is None:
            raise InvalidInput(
                "there is no picture to change", where=f"--{next(iter(said))}", do="--image PATH"
            )
        edit = "image_to_image" if mask is None else "inpaint"
    return {**({"name": edit} if isinstance(edit, str) else edit), **said} if said else edit


def pixels(text: str | None) -> Any:
    """WIDTHxHEIGHT to (height, width)."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 7 for side in sides):
        raise InvalidInput(f"{text!r} is not a size", where="size", do="give 64, or 64x48 as width x height")
    return int(sides[0]) if len(sides) == 1 else (int(sides[1]), int(sides[0]))


def pairs(texts: Sequence[str], where: str) -> dict[str, Any]:
    """Texts of the form name=value."""
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise InvalidInput(f"{text!r} is not name=value", where=where)
        _add(found, name, value)
    return found


def _add(found: dict[str, Any], name: str, value: str) -> None:
    """A name given twice makes a list: one value for each picture."""
    if name in found:
        before = found[name] if isinstance(found[name], list) else [found[name]]
        found[name] = [*before, value]
    else:
        found[name] = value
