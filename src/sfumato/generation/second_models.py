"""Second models: what a guidance needs beside the model that is walked, such as a classifier."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sfumato.core.classifier import NoisyClassifier
from sfumato.core.errors import InvalidInput
from sfumato.core.guidance import Guidance
from sfumato.core.meta import on_meta
from sfumato.model import Model
from sfumato.registry import describe, is_named, name_of, names

Load = Callable[[str], Model]
"""Reads the model at a path, onto the device of the walk."""


def resolve(guidance: Sequence[Guidance], load: Load | None, first: Model) -> list[Guidance]:
    """Guidances with the paths in their fields called `model` replaced by the models there, each read once.

    Guidances inside guidances too. Such a field may hold a loaded Model already, or anything callable.

    Args:
        guidance: as described.
        load: how a path is read; None where that is not possible.
        first: the model that is walked.

    Raises:
        InvalidInput: a path and no way to read it, a model that works in another space, or one that is no
            classifier and is told other inputs.
        What `load` raises.
    """
    read: dict[str, Model] = {}

    def find(value: Any) -> Any:
        if isinstance(value, str):
            if load is None:
                raise InvalidInput(f"{value!r} is a path", where="guidance.model", do="give the loaded model")
            if value not in read:
                with torch.inference_mode(False):
                    read[value] = load(value)
                for part in read[value].modules().values():
                    part.requires_grad_(False)
            value = read[value]
        if isinstance(value, Model):
            _check(value, first)
        return value

    return [_mapped(each, find) for each in guidance]


def second_models(guidance: Sequence[Guidance]) -> list[Model]:
    """The models that resolved guidances hold, each once."""
    found: list[Model] = []

    def note(value: Any) -> Any:
        if isinstance(value, Model) and all(value is not other for other in found):
            found.append(value)
        return value

    for each in guidance:
        _mapped(each, note)
    return found


def ask_more_than_the_model(guidance: Sequence[Guidance]) -> bool:
    """Whether some have a place for a second model, or are functions of the caller's own."""
    asked: list[Any] = []
    for each in guidance:
        _mapped(each, asked.append)
    return bool(asked) or not all(map(is_named, guidance))


def heeded(guidance: Sequence[Guidance], rows: Mapping[str, Sequence[Any]]) -> set[str]:
    """The inputs that the classifiers among the second models heed, once it is sure that they are told.

    Raises:
        InvalidInput: a class that a classifier does not know, or none at all.
    """
    names: set[str] = set()
    for model in second_models(guidance):
        if isinstance(model.denoiser, NoisyClassifier):
            said = _own(model, rows)
            given = {name: [value for value in said[name] if value is not None] for name in said}
            model.conditioner.check(**given)
            if not given.get(model.denoiser.classifies):
                raise InvalidInput(
                    "the classifier is told no class", where=model.denoiser.classifies, do="say which"
                )
            names |= set(model.conditioner.inputs)
    return names


def bind(
    guidance: Sequence[Guidance], count: int, rows: Mapping[str, Sequence[Any]], measured: bool = False
) -> list[Guidance]:
    """Guidances whose classifiers are told the classes of so many pictures; other models stay as they are.

    Args:
        guidance: resolved.
        count: how many pictures.
        rows: what is said of each, by input.
        measured: with models that hold no numbers, to measure the memory they take.
    """

    def tell(value: Any) -> Any:
        if not isinstance(value, Model):
            return value
        denoiser = on_meta(value.denoiser) if measured else value.denoiser
        if isinstance(denoiser, NoisyClassifier):
            return denoiser.likelihood(value.conditioner(count, **_own(value, rows)).vector)
        return dataclasses.replace(value, denoiser=denoiser)

    return [_mapped(each, tell) for each in guidance]


def recorded(guidance: Sequence[Guidance]) -> dict[str, Any]:
    """What a recipe says of resolved guidances: them with the models' paths, and the weights' hashes by path.

    What has no path (a function, a model never saved), what is no plain data (a measurement) and a guidance
    of the caller's own are left out and `unrecorded`.
    """
    hashes: dict[str, Any] = {}
    lost: list[str] = []

    def name(value: Any) -> Any:
        if isinstance(value, Model) and "source" in value.card:
            source = str(value.card["source"])
            hashes[source] = value.card.get("hash")
            return source
        if value is not None:
            lost.append("guidance.model")
        return None

    told: dict[str, Any] = {"guidance": []}
    for each in guidance:
        if is_named(each):
            told["guidance"].append(describe(_plain(_mapped(each, name), lost)))
        else:
            lost.append("guidance")
    if hashes:
        told["second_models"] = hashes
    return {**told, "unrecorded": sorted(set(lost))} if lost else told


def _plain(part: Any, lost: list[str]) -> Any:
    """A guidance without those of its settings that are no plain data, here and inside; `lost` names them."""
    plain = copy.copy(part)
    for field in dataclasses.fields(part) if dataclasses.is_dataclass(part) else ():
        value = getattr(part, field.name)
        try:
            describe(value)
        except InvalidInput:
            inner = dataclasses.is_dataclass(value) and name_of(type(value)) in names("guidance")
            if not inner:
                lost.append(f"guidance.{field.name}")
            # Not through the constructor, which may want settings to agree.
            object.__setattr__(plain, field.name, _plain(value, lost) if inner else field.default)
    return plain


def _check(model: Model, first: Model) -> None:
    for part in ("space",) if isinstance(model.denoiser, NoisyClassifier) else ("space", "conditioner"):
        mine, wanted = describe(getattr(model, part)), describe(getattr(first, part))
        if mine != wanted:
            raise InvalidInput(
                f"has the {part} {mine}, the model walked has {wanted}"[:400], where="guidance.model"
            )


def _own(model: Model, rows: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    return {name: values for name, values in rows.items() if name in model.conditioner.inputs}


def _mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """A guidance with its field `model`, and those of the guidances inside it, changed."""
    if type(part) in (list, tuple):
        inner = type(part)(_mapped(each, change) for each in part)
        return part if all(new is old for new, old in zip(inner, part, strict=True)) else inner
    if not dataclasses.is_dataclass(part) or isinstance(part, type) or not callable(part):
        return part
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    changed = {
        name: change(value) if name == "model" else _mapped(value, change) for name, value in fields.items()
    }
    changed = {name: value for name, value in changed.items() if value is not fields[name]}
    return dataclasses.replace(part, **changed) if changed else part
