"""The recipe a picture carries: a `sfumato` chunk of JSON, the authority, and the web UIs' text."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.core.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64 * 2**20
_MAX_TEXT = 2**20
_KEY = re.compile(r"\w[\w \-/]{0,60}")
_SIGN = "Negative prompt:"

_SAMPLERS = {
    "ancestral": "DDPM",
    "ddim": "DDIM",
    "dpm2": "DPM2",
    "dpm_solver_pp": "DPM++ 2M",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "plms": "PLMS",
    "unipc": "UniPC",
}
"""Samplers by the names the web UIs know them under."""


def encode(image: Image, texts: Mapping[str, str]) -> bytes:
    """A picture as PNG bytes with text chunks; the same picture and texts give the same bytes."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for name, text in texts.items():
        if len(text.encode("utf-8", "replace")) >= _MAX_TEXT:
            raise InvalidInput("the recipe is longer than 1 MiB", where=name, do="say less in the inputs")
        if text.isascii():
            chunks.add_text(name, text)
        else:
            chunks.add_itxt(name, text.encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def texts_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The text chunks of a recipe."""
    return {"parameters": write_parameters(recipe), "sfumato": json.dumps(recipe, separators=(",", ":"))}


def save_png(image: Image, recipe: Mapping[str, Any], folder: str | Path, name: str = "") -> Path:
    """Write a picture with its recipe into a folder, under the next free number; nothing is overwritten.

    Args:
        image: the picture.
        recipe: what makes it again.
        folder: made if need be.
        name: put after the number; the seed if not said.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    label = name or f"seed{recipe.get('seed', 0)}"
    return write_new(encode(image, texts_of(recipe)), Path(folder), f"-{label}.png")


def write_new(data: bytes, folder: Path, ending: str) -> Path:
    """Write bytes to folder/NNNNN<ending> with the next free number, whole or not at all."""
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        taken = [int(found[1]) for entry in os.listdir(folder) if (found := re.match(r"(\d{5,9})-", entry))]
        number = max(taken, default=0) + 1
        while True:
            path = folder / f"{number:05d}{ending}"
            try:
                # A link, unlike a rename, refuses to replace: two writers never take the same name.
                os.link(temporary, path)
                return path
            except FileExistsError:
                number += 1
    except OSError as error:
        raise InvalidInput(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_texts(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG that stand before its pixels, which are not decoded.

    Raises:
        NotFound: no such file.
        InvalidInput: not a PNG, a damaged one, or one made to exhaust memory.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InvalidInput(f"{image.width} x {image.height} pixels are too many", where=str(path))
            info = dict(image.info)
    except FileNotFoundError:
        raise NotFound("no such file", where=str(path)) from None
    except UnidentifiedImageError:
        raise InvalidInput("not a PNG picture", where=str(path)) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"a damaged PNG: {str(error)[:80]}", where=str(path)) from None
    return {str(name): str(text) for name, text in info.items() if isinstance(text, str)}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe a PNG carries.

    Raises:
        NotFound: no such file, or a picture without a recipe of sfumato.
        InvalidInput: not a PNG, or a recipe that is not what it should be.
    """
    texts = read_texts(path)
    if "sfumato" not in texts:
        do = "`sfumato show` tells what its parameters say" if "parameters" in texts else ""
        raise NotFound("this picture carries no recipe of sfumato", where=str(path), do=do)
    return parse(texts["sfumato"], str(path))


def parse(text: str, where: str = "recipe") -> dict[str, Any]:
    """A recipe from its JSON; plain data, nothing in it is ever evaluated."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the recipe is not valid JSON: {str(error)[:80]}", where=where) from None
    if not isinstance(recipe, dict):
        raise InvalidInput("the recipe is not a JSON object", where=where)
    return recipe


def write_parameters(recipe: Mapping[str, Any]) -> str:
    """A recipe as the text web UIs read: prompt, negative prompt, and a last line of `Key: value` pairs."""
    guidance = next((g for g in recipe.get("guidance", []) if g.get("name") == "classifier_free"), None)
    height, width = (*recipe.get("size", ()), 0, 0)[:2]
    model, sampler = recipe.get("model", {}), recipe.get("sampler", {}).get("name", "")
    pairs = {
        "Steps": recipe.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler),
        "Schedule type": str(recipe.get("times", {}).get("name", "")).replace("_", " ").title(),
        "CFG scale": guidance.get("scale", 7.5) if guidance else 1,
        "Seed": recipe.get("seed"),
        "Size": f"{width}x{height}",
        "Model hash": str(model.get("hash", ""))[:10] or None,
        "Model": model.get("name"),
        "RNG": "CPU",
        "Version": f"sfumato {recipe.get('sfumato', '')}".strip(),
    }
    lines = [_said(recipe.get("inputs", {}))]
    if recipe.get("negative"):
        lines.append(f"{_SIGN} {_said(recipe['negative'])}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def read_parameters(text: str) -> dict[str, Any]:
    """The web UIs' text taken apart: {"prompt", "negative", "settings": {"Steps": "20", ...}}, all texts.

    The last line counts as settings when it holds at least three pairs. A prompt that itself holds a line
    starting `Negative prompt:` cannot be told from one that has a negative; the JSON chunk can.
    """
    *lines, last = text.split("\n")
    settings = _settings(last)
    if len(settings) < 3:
        lines, settings = [*lines, last], {}
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in lines:
        if line.startswith(_SIGN):
            negative = [*(negative or []), line.removeprefix(_SIGN).removeprefix(" ")]
        else:
            (prompt if negative is None else negative).append(line)
    return {"prompt": "\n".join(prompt), "negative": "\n".join(negative or []), "settings": settings}


def _settings(line: str) -> dict[str, str]:
    """`Key: value` pairs between commas; a value in quotes may hold commas. One pass over the line."""
    found: dict[str, str] = {}
    place = 0
    while place < len(line):
        comma = line.find(",", place)
        end = len(line) if comma < 0 else comma
        colon = line.find(":", place, end)
        if colon >= 0:
            key, start = line[place:colon].strip(), colon + 1
            while line[start : start + 1] == " ":
                start += 1
            if line[start : start + 1] == '"' and (close := _closing(line, start)):
                end = close
            if _KEY.fullmatch(key):
                found[key] = _unquoted(line[start:end])
        place = end + 1
    return found


def _closing(line: str, start: int) -> int:
    """Just after the quotes that close those at start; 0 where none do."""
    place = start + 1
    while place < len(line):
        if line[place] == '"':
            return place + 1
        place += 2 if line[place] == "\\" else 1
    return 0


def _said(inputs: Mapping[str, Any]) -> str:
    """The prompt where there is one; else all that was said, one after another."""
    if isinstance(inputs.get("prompt"), str):
        return str(inputs["prompt"])
    said = [value for value in inputs.values() if isinstance(value, str | int | float)]
    return ", ".join(map(str, said))


def _quoted(value: Any) -> str:
    text = str(value)
    return (
        json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) or text != text.strip() else text
    )


def _unquoted(text: str) -> str:
    text = text.strip()
    if text[:1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
