"""Replay: the picture again from its recipe, byte for byte on the same machine."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.sampler import Observe
from sfumato.generation.images import Images
from sfumato.generation.inputs import digest, hash_of, held_hash
from sfumato.generation.second_models import Load
from sfumato.interfaces.recipe import encode, read_recipe, read_texts
from sfumato.interfaces.request import Request
from sfumato.model import Model


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


def replay(
    path: str | Path,
    model: str | Path | None = None,
    observe: Observe | None = None,
    given: Sequence[Any] = (),
) -> Replay:
    """Make a picture again from the recipe it carries.

    Args:
        path: the PNG.
        model: where the model is now; where it was, if not said.
        observe: called after every step.
        given: pictures and maps it was made from, where the recipe does not lead to them: paths of files that
            are elsewhere now, and images and tensors, which a recipe cannot hold. Each is known by its
            content, whatever its name and in any order.

    Raises:
        NotFound: no such picture, no recipe in it, no model where it was, or no picture it was made from.
        InvalidInput: other weights than it was made with, also of a second model such as a classifier, or
            inputs that were not recorded.
    """
    recipe, where = read_recipe(path), str(path)
    found = _found(recipe, {str(hash_of(each)): each for each in given}, where)
    loaded = _model(recipe, model, where)
    recipe = _given_back(recipe, found, getattr(loaded.conditioner, "pictures", ()), where)
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


def _found(recipe: dict[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The pictures that the recipe tells of, by their path or their hash.

    Raises:
        NotFound, InvalidInput: one is missing, or is another now; or something that no recipe holds.
    """
    found = dict(given)
    for path, told in _dict(recipe, "pictures", where).items():
        try:
            now = digest(path)
        except NotFound:
            now = ""
        if now != told and told not in given:
            what = "which is another picture now" if now else "which is not there"
            raise (InvalidInput if now else NotFound)(
                f"made from {path}, {what}", where=where, do="give the file it was: --given PATH"
            )
        found[path] = path if now == told else given[told]
    lost = [str(name) for name in recipe.get("unrecorded", ())]
    if lost := [name for name in lost if not (hashes := _hashes(recipe, name)) or hashes - given.keys()]:
        hashed = any(_hashes(recipe, name) for name in lost)
        raise InvalidInput(
            f"made with things that a recipe cannot hold: {', '.join(lost)}",
            where=where,
            do="from Python, give them: replay(path, given=[...])" if hashed else "",
        )
    return found


def _hashes(recipe: dict[str, Any], name: str) -> set[str]:
    """The hashes that stand in the place of an input, or of a setting edit.name."""
    batch = recipe.get("batch")
    places = [recipe, batch if isinstance(batch, dict) else {}]
    held = [place.get(side) for place in places for side in _SIDES]
    if name.startswith("edit."):
        held, name = [recipe.get("edit")], name.removeprefix("edit.")
    left, found = [each.get(name) for each in held if isinstance(each, dict)], set()
    while left:
        value = left.pop()
        if (told := held_hash(value)) is not None:
            found.add(told)
        left += value if isinstance(value, list) else []
    return found


_SIDES = ("inputs", "negative")


def _given_back(
    recipe: dict[str, Any], found: Mapping[str, Any], pictures: Collection[str], where: str
) -> dict[str, Any]:
    """The recipe with pictures in the place of their paths and hashes."""

    def find(value: Any, picture: bool) -> Any:
        if isinstance(value, list):
            return [find(each, picture) for each in value]
        # A prompt may happen to be the path of a file.
        told = value if picture and isinstance(value, str) else held_hash(value)
        return found.get(told, value) if told is not None else value

    def told(place: dict[str, Any]) -> dict[str, Any]:
        sides = {side: _dict(place, side, where) for side in _SIDES if side in place}
        return place | {
            side: {name: find(value, name in pictures) for name, value in said.items()}
            for side, said in sides.items()
        }

    whole = told(recipe)
    if "batch" in recipe:
        whole["batch"] = told(_dict(recipe, "batch", where))
    if "edit" in recipe:
        edit = _dict(recipe, "edit", where)
        whole["edit"] = {name: find(value, name != "name") for name, value in edit.items()}
    return whole


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
    names = ("sampler", "times", "guidance", "path", "fast", "edit", "steps")
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
