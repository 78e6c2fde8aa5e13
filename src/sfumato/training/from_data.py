"""What a run file leaves to its data: names and words, written {from: data}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset
from sfumato.encoders.word_piece import WordPiece
from sfumato.registry import describe


def asks(settings: Any) -> bool:
    """Whether something in a model's settings is left to the data."""
    if isinstance(settings, Mapping):
        return dict(settings) == {"from": "data"} or any(map(asks, settings.values()))
    return isinstance(settings, list | tuple) and any(map(asks, settings))


def filled(settings: Any, data: Dataset, *place: str) -> Any:
    """A model's settings with what the data say in the place of every {from: data}.

        labels: {concept: {from: data}}     of class_label: the distinct words of the input
        names: {from: data}                 of boxes and box_map: the labels of objects
        classes: {from: data}               of semantic_map: how many
        tokenizer: {from: data}             of text_small: a vocabulary of the captions' words

    Raises:
        InvalidInput: the data say nothing of it.
    """
    if isinstance(settings, list | tuple):
        return [filled(each, data, *place) for each in settings]
    if not isinstance(settings, Mapping):
        return settings
    if dict(settings) != {"from": "data"}:
        inside = (*place, str(settings["name"])) if "name" in settings else place
        return {key: filled(value, data, *inside, key) for key, value in settings.items()}
    last = place[-1]
    # Of a list of names the input is its key; a conditioner's own list is that of the input of its name.
    key = place[-2] if last in ("names", "classes") else last
    key = {"tokenizer": "caption", "box_map": "boxes"}.get(key, key)
    own = getattr(data, "labels", None)
    words = own(key) if own is not None else []
    if not words:
        raise InvalidInput(f"the data say no {key}", where=f"model.{'.'.join(place)}", do="write it out")
    if last == "tokenizer":
        return describe(WordPiece.of(words))
    return len(words) if last == "classes" else words
