"""First stage: the trained autoencoder that a latent model's run file names by its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sfumato.checkpoints.keys import fit
from sfumato.checkpoints.load import load
from sfumato.core.coder import Coder
from sfumato.core.errors import InvalidInput
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.spaces.latent import Latent


def is_named(settings: Mapping[str, Any]) -> bool:
    """Whether a model's settings name a trained autoencoder: space.autoencoder is {"from": FOLDER}."""
    space = settings.get("space")
    inner = space.get("autoencoder") if isinstance(space, Mapping) else None
    return isinstance(inner, Mapping) and "from" in inner


def with_first_stage(settings: Mapping[str, Any], card: dict[str, Any]) -> Model:
    """A model with fresh weights but for its autoencoder, whose settings, weights and scale are as trained.

    The scale of the latents is the one measured when the autoencoder was trained, unless the settings say
    another. What is made holds the autoencoder as its own: the folder is not needed again.

    Args:
        settings: of the model, with space {"name": "latent", "autoencoder": {"from": FOLDER}, ...}.
        card: of the model; where it says nothing of the first stage, its hash is noted.

    Raises:
        InvalidInput: the folder holds no autoencoder, or something is said beside `from`.
        What `load` raises.
    """
    space = dict(settings["space"])
    named = space["autoencoder"]
    folder = named["from"]
    if set(named) != {"from"} or not isinstance(folder, str):
        raise InvalidInput("say `from` and a folder, nothing else", where="model.space.autoencoder")
    source = load(folder, dtype=torch.float32)
    if not isinstance(source.denoiser, Coder):
        raise InvalidInput("holds a model, but no autoencoder", where=folder)
    space["autoencoder"] = describe(source.denoiser.network)
    measured = source.card.get("latent", {})
    if "scale" not in space:
        if "scale" not in measured:
            raise InvalidInput(
                "the autoencoder's card says no scale of its latents",
                where=folder,
                do="set model.space.scale, 1 / standard deviation of latents",
            )
        space["scale"] = measured["scale"]
    said = {"first_stage": {"hash": source.card.get("hash")}, **card}
    model = Model.from_description({**settings, "space": space}, said)
    assert isinstance(model.space, Latent)
    assert isinstance(model.space.autoencoder, nn.Module)
    tensors = {f"space.{name}": each for name, each in source.denoiser.network.state_dict().items()}
    fit({"space": model.space.autoencoder}, tensors, folder, strict=True)
    return model
