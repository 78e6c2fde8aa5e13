"""A model joined with controls, however either was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sfumato.conditioners.hints import Hints
from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.together import Together, parts_of
from sfumato.control.controlnet import ControlNet
from sfumato.core.alone import Alone, Guide
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.model import Model
from sfumato.networks.controlled import Controlled
from sfumato.networks.hooked import Hooked


def controlled(
    model: Model,
    controls: Model | nn.Module | Sequence[Model | nn.Module],
    names: str | Sequence[str] = (),
    **settings: Any,
) -> Model:
    """The model with controls that read hints: `generate(model, prompt=..., hint=picture)`.

        canny, depth = load("control_v11p_sd15_canny.pth"), load("control_v11f1p_sd15_depth.pth")
        model = controlled(load("v1-5-pruned-emaonly.safetensors"), (canny, depth), ("canny", "depth"))

    The parts are shared and not copied. A control serves any network that was fine-tuned from the one it was
    trained with. A model that has controls already is given these besides.

    Args:
        model: whose network takes residuals: a latent U-Net, or one with controls.
        controls: loaded alone, or with the model that they were trained in, or built.
        names: of their hints, as inputs; "hint", "hint_2", .. if not said.
        settings: of `Controlled`: what learns in training, and whether the middle alone is heeded.

    Raises:
        InvalidInput: parts that are none of these, or of unlike shapes; a control that learnt with its own
            network's decoder, without which it is nothing; names that are none.
    """
    given = [controls] if isinstance(controls, Model | nn.Module) else list(controls)
    if isinstance(model.denoiser, Alone):
        raise InvalidInput("this is a part alone, which nothing steers", where="controlled.model")
    found = [_controls(each, f"controlled.controls[{place}]") for place, each in enumerate(given)]
    parts = [part for each in found for part in each]
    network: Any = model.denoiser.network
    inner, held = (network.network, network.controls) if isinstance(network, Controlled) else (network, ())
    bare = inner.network if isinstance(inner, Hooked) else inner
    for place, part in enumerate(parts):
        _check(part, bare, model, f"controlled.controls[{place}]")
    before = next((each for each in parts_of(model.conditioner) if isinstance(each, Hints)), None)
    told = before.names if before is not None else ()
    spoken = (names,) if isinstance(names, str) else tuple(names)
    spoken = spoken or tuple(_name(len(told) + place) for place in range(len(parts)))
    if len(spoken) != len(parts):
        raise InvalidInput(f"{len(spoken)} names for {len(parts)} controls", where="controlled.names")
    colors = [before.colors_of[name] for name in told] if before is not None else []
    colors += [getattr(part, "hint_channels", 3) for part in parts]
    hints = Hints((*told, *spoken), colors[0] if len(set(colors)) == 1 else tuple(colors))
    others = tuple(each for each in parts_of(model.conditioner) if not isinstance(each, Hints | Nothing))
    whole = (
        replace(network, controls=(*held, *parts), **settings)
        if isinstance(network, Controlled)
        else Controlled(network, tuple(parts), **settings)
    )
    whole.train(network.training)
    own = model.denoiser
    denoiser = NetworkDenoiser(whole, own.process, own.prediction, own.time_input, own.learned_range)
    denoiser.train(own.training)
    conditioner: Any = Together((*others, hints)) if others else hints
    conditioner.train(getattr(model.conditioner, "training", False)).to(model.device)
    return Model(denoiser, conditioner, model.space, joined_card(model, given))


def separated(model: Model) -> tuple[Model, dict[str, ControlNet]]:
    """The inverse of `controlled`: the model without its controls, and these by their hints' names.

    Raises:
        InvalidInput: other controls than ControlNets, or hints that are none of the controls'.
    """
    network: Any = model.denoiser.network
    if not isinstance(network, Controlled):
        return model, {}
    parts = parts_of(model.conditioner)
    names = next((each.names for each in parts if isinstance(each, Hints)), ())
    others = [each for each in parts if not isinstance(each, Hints)]
    if len(names) != len(network.controls) or not all(isinstance(c, ControlNet) for c in network.controls):
        raise InvalidInput(
            "controls other than ControlNets, each with its hint, have no place in another format",
            where="model",
            do="save it in the native format",
        )
    own = model.denoiser
    denoiser = NetworkDenoiser(
        network.network, own.process, own.prediction, own.time_input, own.learned_range
    )
    conditioner: Any = Together(tuple(others)) if len(others) > 1 else (others or [Nothing()])[0]
    base = Model(denoiser, conditioner, model.space, model.card)
    return base, {name: each for name, each in zip(names, network.controls, strict=True)}  # type: ignore[misc]


def describe_controlled(
    description: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The description of a model joined with controls, of theirs, as `controlled` joins them."""
    conditioner = description["conditioner"]
    parts = conditioner["parts"] if conditioner["name"] == "together" else [conditioner]
    names = [_name(place) for place in range(len(controls))]
    colors = [control.get("hint_channels", 3) for control in controls]
    hints = {"name": "hints", "names": names, "colors": colors[0] if len(set(colors)) == 1 else colors}
    network = {"name": "controlled", "network": description["network"], "controls": list(controls)}
    return {**description, "network": network, "conditioner": {"name": "together", "parts": [*parts, hints]}}


def _controls(given: Any, where: str) -> list[Any]:
    """The controls of what was loaded or built: its own where it is a model that has some."""
    if not isinstance(given, Model):
        return [given]
    network: Any = given.denoiser.network
    if isinstance(given.denoiser, Guide):
        return [network]
    if isinstance(network, Controlled):
        if network.learns == "decoder":
            what = "this control learnt together with the decoder of its own network"
            raise InvalidInput(what, where=where, do="use the model that it is in")
        return list(network.controls)
    raise InvalidInput("this is a model without a control", where=where)


def _check(part: Any, network: Any, model: Model, where: str) -> None:
    """Refuse a control that does not fit the network or the model's space."""
    if not isinstance(getattr(part, "factor", None), int):
        raise InvalidInput(f"a {type(part).__name__} is no control that reads hints", where=where)
    part.check_fits(network)
    side = model.space.step * part.factor
    ratio = side // getattr(model.space, "latent_shape", model.space.shape)(side, side)[1]
    if part.factor != ratio:
        raise InvalidInput(
            f"a control of {part.factor} pixels a place for a model of {ratio}",
            where=where,
            do="take one made for this kind of model",
        )


def _name(place: int) -> str:
    return f"hint_{place + 1}" if place else "hint"


def joined_card(model: Model, controls: Sequence[Any]) -> dict[str, Any]:
    """The model's, with a hash of all the weights' hashes where each has one."""
    cards = [model.card, *(each.card if isinstance(each, Model) else {} for each in controls)]
    hashes = [card.get("hash") for card in cards]
    card = {key: value for key, value in model.card.items() if key not in ("hash", "source")}
    names = [each["name"] for each in cards[1:] if "name" in each]
    if names:
        card["controls"] = [*card.get("controls", ()), *names]
    if all(isinstance(each, str) for each in hashes):
        card["hash"] = hashlib.sha256("\n".join(map(str, hashes)).encode()).hexdigest()
    return card
