"""Widen: a trained model that is to learn to be told a picture or a map besides, laid beside x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.together import parts_of
from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset
from sfumato.model import Model
from sfumato.registry import find
from sfumato.training.objectives.objective import told
from sfumato.training.parts import collate_of


def widened(start: Model, conditioner: Mapping[str, Any], data: Dataset, card: dict[str, Any]) -> Model:
    """The model with one conditioner more, whose channels stand beside x.

    One that says all its own does, and more, takes its place (text_draft that of text_small).

    The network's first layer gets weights of zero for the channels that are new, so that at first the model
    does as it did, whatever it is told besides.

    Brooks, Holynski & Efros 2022, "InstructPix2Pix: Learning to Follow Image Editing Instructions",
    arXiv:2211.09800, section 3.2; Stable Diffusion's models of inpainting and of depth were begun likewise.

    Args:
        start: whose settings and weights are taken.
        conditioner: described, e.g. {"name": "image"}.
        data: whose first item shows how many channels it fills.
        card: of what is made.

    Raises:
        InvalidInput: it fills no channels, or the network cannot take them.
    """
    settings = start.describe()
    settings["conditioner"] = _with(settings["conditioner"], conditioner)
    if "in_channels" not in settings["network"]:
        # A default is not described; what it is, x alone or with what stands beside it now, the network says.
        settings["network"]["in_channels"] = getattr(start.denoiser.network, "in_channels", 0)
    more = _channels(Model.from_description(settings), data) - _channels(start, data)
    if more < 1:
        raise InvalidInput(f"{conditioner.get('name')} lays nothing beside x", where="told")
    settings["network"]["in_channels"] += more
    made = Model.from_description(settings, card)
    _fill(made.denoiser.network, start.denoiser.network.state_dict(), more)
    for old, new in zip(parts_of(start.conditioner), parts_of(made.conditioner), strict=False):
        if isinstance(old, torch.nn.Module):
            new.load_state_dict({**new.state_dict(), **old.state_dict()})
    if isinstance(start.space, torch.nn.Module):
        made.modules()["space"].load_state_dict(start.space.state_dict())
    return made


def _with(own: dict[str, Any], conditioner: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of all conditioners: the new one in the place of what it continues, else after the others."""
    kind = find("conditioner", str(conditioner["name"]))
    parts = list(own.get("parts", [] if own["name"] == "nothing" else [own]))
    before = [find("conditioner", part["name"]) for part in parts]
    place = next((i for i, each in enumerate(before) if each is not kind and issubclass(kind, each)), None)
    if place is None:
        parts.append(dict(conditioner))
    else:
        parts[place] = {**parts[place], **conditioner}
    return parts[0] if len(parts) == 1 else {"name": "together", "parts": parts}


def _channels(model: Model, data: Dataset) -> int:
    """How many channels stand beside x."""
    with torch.no_grad():
        said = told(model, collate_of(data)([data.load(0, 0)]))
    return sum(each.shape[1] for each in (said.draft, said.channels) if each is not None)


def _fill(network: torch.nn.Module, weights: Mapping[str, Tensor], more: int) -> None:
    """Weights of a network into a wider one, with zeros for the channels of its first layer that are new."""
    wanted = network.state_dict()
    grown = [name for name, tensor in wanted.items() if tensor.shape != weights[name].shape]
    if len(grown) != 1 or wanted[grown[0]].shape[1] - weights[grown[0]].shape[1] != more:
        raise InvalidInput(f"this network does not grow by {more} channels", where="told")
    first = weights[grown[0]]
    filled = F.pad(first, (*[0, 0] * (first.ndim - 2), 0, more))
    network.load_state_dict({**weights, grown[0]: filled})
