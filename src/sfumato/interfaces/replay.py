"""Replay: the picture again from its recipe, byte for byte on the same machine."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.sampler import Observe
from sfumato.edits import digest
from sfumato.images import Images
from sfumato.interfaces.recipe import encode, read_recipe, read_texts
from sfumato.interfaces.request import Request
from sfumato.model import Model
from sfumato.second_models import Load


@dataclass(frozen=True)
class Replay:
    """A picture made again.

    Args:
        data: the PNG.
        identical: whether it has the bytes of the first.
        pixels_differ: share of 8-bit values that differ, 0 to 1.
        changed: what is not as it was when the picture was made, in words.
    """

    data: bytes
    identical: bool
    pixels_differ: float
    changed: tuple[str, ...]


def replay(path: str | Path, model: str | Path | None = None, observe: Observe | None = None) -> Replay:
    """Make a picture again from the recipe it carries.

    Args:
        path: the PNG.
        model: where the model is now; where it was, if not said.
        observe: called after every step.

    Raises:
        NotFound: no such picture, no recipe in it, or no model where it was.
        InvalidInput: other weights than it was made with, also of a second model such as a classifier, or
            inputs that were not recorded.
    """
    recipe, where = read_recipe(path), str(path)
    if unrecorded := recipe.get("unrecorded"):
        names = ", ".join(map(str, unrecorded))
        raise InvalidInput(f"made with things that a recipe cannot hold: {names}", where=where)
    _same_pictures(recipe, where)
    loaded = _model(recipe, model, where)
    batch = _dict(recipe, "batch", where) or {
        "row": 0,
        "seeds": [recipe.get("seed")],
        "inputs": {name: [value] for name, value in _dict(recipe, "inputs", where).items()},
        "negative": {name: [value] for name, value in _dict(recipe, "negative", where).items()},
    }
    images = _walk_again(recipe, loaded, batch, observe, _second(recipe, loaded.device, where))
    row = batch.get("row")
    if type(row) is not int or not 0 <= row < len(images):
        raise InvalidInput("the recipe's batch has no such row", where=where)
    texts = {name: text for name, text in read_texts(path).items() if name in ("parameters", "sfumato")}
    data = encode(images.images[row], texts)
    return Replay(
        data, data == Path(path).read_bytes(), _difference(images, row, path), _changed(recipe, loaded)
    )


def _model(recipe: dict[str, Any], place: str | Path | None, where: str) -> Model:
    told = _dict(recipe, "model", where)
    source = place or told.get("source")
    if not source:
        raise NotFound(
            "the recipe does not say where its model is", where=where, do="give it: --model FOLDER"
        )
    model = load(str(source), device=recipe.get("device") if torch.cuda.is_available() else None)
    return _same(model, told.get("hash"), source, where, "give the model it was made with: --model FOLDER")


def _second(recipe: dict[str, Any], device: torch.device, where: str) -> Load:
    """Reads the models that the guidance names, and refuses other weights than it was made with."""
    told = _dict(recipe, "second_models", where)

    def read(source: str) -> Model:
        return _same(load(source, device=device), told.get(source), source, where, "put back what was there")

    return read


def _same_pictures(recipe: dict[str, Any], where: str) -> None:
    """Refuse when a picture that was edited is another now."""
    for path, told in _dict(recipe, "pictures", where).items():
        try:
            now = digest(path)
        except OSError as error:
            raise NotFound(f"made from {path}: {error.strerror}", where=where) from None
        if now != told:
            raise InvalidInput(f"made from {path}, which is another picture now", where=where)


def _same(model: Model, digest: Any, source: Any, where: str, do: str) -> Model:
    if digest != model.card.get("hash"):
        raise InvalidInput(
            f"made with weights {str(digest)[:12]}…, but {source} holds {str(model.card.get('hash'))[:12]}…",
            where=where,
            do=do,
        )
    return model


def _walk_again(
    recipe: dict[str, Any], model: Model, batch: dict[str, Any], observe: Observe | None, second: Load
) -> Images:
    names = ("sampler", "times", "guidance", "path", "edit", "steps")
    size = recipe.get("cut" if "edit" in recipe else "size")
    request = Request.of(
        **{name: recipe[name] for name in names if name in recipe},
        size=size,
        seeds=batch.get("seeds"),
        inputs=batch.get("inputs") or {},
        negative=batch.get("negative") or None,
        batch=len(batch.get("seeds") or [0]),
    )
    threads, before = recipe.get("threads"), torch.get_num_threads()
    # The order in which threads add up numbers is part of their rounding.
    if type(threads) is int and 1 <= threads <= 1024:
        torch.set_num_threads(threads)
    try:
        return request.run(model, observe, second)
    finally:
        torch.set_num_threads(before)


def _difference(images: Images, row: int, path: str | Path) -> float:
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as old:
        first, second = old.tobytes(), images.images[row].tobytes()
    if len(first) != len(second):
        return 1.0
    return sum(a != b for a, b in zip(first, second, strict=True)) / max(len(first), 1)


def _changed(recipe: dict[str, Any], model: Model) -> tuple[str, ...]:
    versions = recipe.get("versions", {}) if isinstance(recipe.get("versions"), dict) else {}
    now = {
        "sfumato": (recipe.get("sfumato"), __version__),
        "torch": (versions.get("torch"), torch.__version__),
        "python": (versions.get("python"), platform.python_version()),
        "device": (recipe.get("device"), str(model.device)),
    }
    return tuple(f"{name} {then} then, {here} now" for name, (then, here) in now.items() if then != here)


def _dict(recipe: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = recipe.get(name, {})
    if not isinstance(value, dict):
        raise InvalidInput(f"the recipe's {name} is not a JSON object", where=where)
    return value
