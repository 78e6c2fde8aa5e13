"""Trained parts: the autoencoder and the text encoders that a run file takes from other runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sfumato.checkpoints.keys import fit
from sfumato.checkpoints.load import load
from sfumato.core.alone import ALONE
from sfumato.core.errors import InvalidInput
from sfumato.model import Model
from sfumato.registry import describe

Place = tuple[str | int, ...]
"""Keys from a model's settings to a part's."""

KINDS = {"autoencoder": "autoencoder", "encoder": "encoder", "text": "encoder"}
"""Of what kind a part is, by its key: a space's autoencoder, a conditioner's encoder, a pair's text tower."""


def named(settings: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Where a model's settings name a trained part, as {"from": FOLDER}, and the folders.

    Raises:
        InvalidInput: something is said beside `from`, or it is no folder.
    """
    if isinstance(settings, Mapping):
        if place and place[-1] in KINDS and "from" in settings and settings["from"] != "data":
            if set(settings) != {"from"} or not isinstance(settings["from"], str):
                where = ".".join(map(str, ("model", *place)))
                raise InvalidInput("say `from` and a folder, nothing else", where=where)
            yield place, settings["from"]
            return
        for key, value in settings.items():
            yield from named(value, (*place, key))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from named(value, (*place, number))


def with_trained_parts(settings: Mapping[str, Any], card: dict[str, Any]) -> Model:
    """A model with fresh weights but for the parts it names, whose settings and weights are as trained.

    The scale of latents is the one measured when the autoencoder was trained, unless the settings say
    another. What is made holds the parts as its own: the folders are not needed again.

    Args:
        settings: of the model, e.g. with space {"name": "latent", "autoencoder": {"from": FOLDER}, ...}.
        card: of the model; where it says nothing of the autoencoder, its hash is noted.

    Raises:
        InvalidInput: a folder holds another kind of thing, or says no scale of its latents.
        What `load` raises.
    """
    said, filled, sources = dict(card), _copied(settings), {}
    for place, folder in named(settings):
        kind = KINDS[str(place[-1])]
        source = load(folder, dtype=torch.float32)
        if not isinstance(source.denoiser, ALONE[kind]):
            raise InvalidInput(f"holds a model, but no {kind} alone", where=folder)
        around = _at(filled, place[:-1])
        around[place[-1]] = describe(source.denoiser.network)
        if kind == "autoencoder":
            _scaled(around, source, folder)
            said = {"first_stage": {"hash": source.card.get("hash")}, **said}
        sources[place] = (folder, source)
    model = Model.from_description(filled, said)
    roots = {"space": model.space, "conditioner": model.conditioner, "encoder": model.denoiser.network}
    for (root, *inner), (folder, source) in sources.items():
        module = _held(roots[str(root)], tuple(inner))
        tensors = {f"part.{name}": each for name, each in source.denoiser.network.state_dict().items()}
        fit({"part": module}, tensors, folder, strict=True)
    return model


def _scaled(space: dict[str, Any], source: Model, folder: str) -> None:
    if "scale" in space:
        return
    measured = source.card.get("latent", {})
    if "scale" not in measured:
        raise InvalidInput(
            "the autoencoder's card says no scale of its latents",
            where=folder,
            do="set model.space.scale, 1 / standard deviation of latents",
        )
    space["scale"] = measured["scale"]


def _copied(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {key: _copied(value) for key, value in settings.items()}
    return [_copied(each) for each in settings] if isinstance(settings, list | tuple) else settings


def _at(settings: Any, place: Place) -> Any:
    for key in place:
        settings = settings[key]
    return settings


def _held(part: Any, place: Place) -> Any:
    for key in place:
        part = part[key] if isinstance(key, int) else getattr(part, key)
    return part
