"""A trained model with fresh controls, of which nothing but the controls will learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.controlled import controlled
from sfumato.checkpoints.prompted import grounded
from sfumato.conditioners.together import parts_of
from sfumato.control.gligen import Gligen
from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset
from sfumato.data.layout import is_layout
from sfumato.model import Model
from sfumato.registry import find

_OBJECTS = 8
"""Room for so many boxes in a picture."""


def with_controls(start: Model, controls: Mapping[str, str | Mapping[str, Any]], data: Dataset) -> Model:
    """The model with one fresh control for each of the data's hints; at first it does as it did.

    Args:
        start: whose network is copied; what it is told by (words that learnt with it) stays as it is.
        controls: kinds of controls by the input they read, e.g. {"hint": "controlnet"}, {"boxes": "gligen"};
            or with what `Controlled` is told, {"hint": {"name": "controlnet", "learns": "decoder"}}.
        data: whose first item shows how many channels each hint has.

    Raises:
        InvalidInput: the data tell no such hint, or a kind of control is not begun from a network; settings
            that are none, or not the same for all hints.
    """
    said = {name: {"name": each} if isinstance(each, str) else dict(each) for name, each in controls.items()}
    kinds = {name: find("control", each.pop("name", "controlnet")) for name, each in said.items()}
    boxes = [name for name, kind in kinds.items() if kind is Gligen]
    settings = _together(said)
    if boxes and settings:
        raise InvalidInput("beside boxes the network is as it was", where="controls", do="say names alone")
    made = _with_boxes(start, boxes, data) if boxes else start
    if hints := {name: kind for name, kind in kinds.items() if kind is not Gligen}:
        made = _with_hints(made, start, hints, data, settings)
    for part in (made.conditioner, made.space):
        if (freeze := getattr(part, "requires_grad_", None)) is not None:
            freeze(False)
    return made


def _with_boxes(start: Model, names: Sequence[str], data: Dataset) -> Model:
    """The model with a fresh control of boxes."""
    if names != ["boxes"] or not is_layout(data.load(0, 0).inputs.get("boxes")):
        raise InvalidInput("the data tell no layout of this name", where=f"controls.{names[-1]}", do="boxes")
    text = next((each for each in parts_of(start.conditioner) if hasattr(each, "whole")), None)
    if text is None:
        raise InvalidInput("this model reads no words", where="controls.boxes")
    with torch.no_grad():
        width = text.whole([""]).shape[1]
    return grounded(start, Gligen.of(start.denoiser.network, width, width, masked=True), _OBJECTS)


def _together(said: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What is said of the network and all its controls, which is said alike of each."""
    first, *others = said.items()
    known = {"learns": ("control", "decoder"), "middle": (False, True)}
    for name, settings in (first, *others):
        where = f"controls.{name}"
        if unknown := sorted(set(settings) - set(known)):
            raise InvalidInput(f"unknown key {unknown[0]!r}", where=where, do="say name, learns or middle")
        for key, value in settings.items():
            if value not in known[key]:
                raise InvalidInput(f"{value!r} is none of {known[key]}", where=f"{where}.{key}")
        if settings != first[1]:
            what = "controls of one network learn alike"
            raise InvalidInput(what, where=where, do=f"say of it what is said of {first[0]}")
    return first[1]


def _with_hints(
    made: Model, start: Model, kinds: Mapping[str, Any], data: Dataset, settings: dict[str, Any]
) -> Model:
    """The model with one fresh control for each hint."""
    sides, space = start.space.step, start.space
    factor = sides // space.shape(sides, sides)[1]
    item, fresh = data.load(0, 0), []
    for name, kind in kinds.items():
        hint = item.inputs.get(name)
        if not isinstance(hint, Tensor):
            raise InvalidInput("the data tell no hint of this name", where=f"controls.{name}")
        begin = getattr(kind, "of", None)
        if begin is None:
            raise InvalidInput(f"a {kind.__name__} is not begun from a network", where=f"controls.{name}")
        fresh.append(begin(start.denoiser.network, hint_channels=hint.shape[0], factor=factor))
    return controlled(made, fresh, tuple(kinds), **settings)
