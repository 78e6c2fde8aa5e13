"""Words of the command line, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sfumato.core.errors import InvalidInput


def part(text: str | None, where: str) -> Any:
    """A name, a number, or YAML of dictionaries and lists."""
    if text is None:
        return None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidInput(f"{text!r} is neither a name nor a dictionary", where=where) from None


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


def options(words: Sequence[str]) -> dict[str, Any]:
    """Options the command does not know: --name value or --name=value, each an input of the model."""
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InvalidInput(f"unexpected {word!r}", where="generate", do="inputs are --name value")
        name, sign, value = word[2:].partition("=")
        if not sign:
            if not rest:
                raise InvalidInput("needs a value", where=word)
            value = rest.pop(0)
        _add(found, name.replace("-", "_"), value)
    return found


def _add(found: dict[str, Any], name: str, value: str) -> None:
    """A name given twice makes a list: one value for each picture."""
    if name in found:
        before = found[name] if isinstance(found[name], list) else [found[name]]
        found[name] = [*before, value]
    else:
        found[name] = value
