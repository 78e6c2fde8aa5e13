"""GLIGEN's weights inside a U-Net of diffusers: their names, and the description of the model they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfumato.checkpoints import sd_unet_keys
from sfumato.checkpoints.assembly import Convert
from sfumato.control.gligen import Gligen, places_of
from sfumato.core.meta import without_numbers
from sfumato.registry import build, describe

SHARE = 0.3
"""Of the walk in which published ones act, where nobody says another."""


def describe_grounded(description: Mapping[str, Any]) -> dict[str, Any]:
    """A model's description with boxes told, of that without, as `prompted.grounded` joins them."""
    with without_numbers():
        network = build("network", description["network"])
        control = Gligen.of(network, network.tokens, network.tokens, SHARE)
    conditioner = description["conditioner"]
    parts = conditioner["parts"] if conditioner["name"] == "together" else [conditioner]
    return {
        **description,
        "network": {"name": "hooked", "network": description["network"], "control": describe(control)},
        "conditioner": {"name": "together", "parts": [*parts, {"name": "grounding"}]},
    }


def from_diffusers(network: Mapping[str, Any], convert: Convert) -> Convert:
    """Names of a gated U-Net of diffusers to those of the network and its control.

    Args:
        network: described.
        convert: of the names that a U-Net without boxes has.
    """
    with without_numbers():
        made = build("network", network)
    blocks = sd_unet_keys.blocks_of(made.state_dict())
    fusers = {}
    for number, (name, _) in enumerate(places_of(made)):
        theirs = sd_unet_keys.to_diffusers(f"{name}.norm1.weight", blocks).removesuffix("norm1.weight")
        fusers[f"{theirs}fuser."] = f"control.fusers.{number}."

    def work(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        plain: dict[str, Tensor] = {}
        for name, tensor in theirs.items():
            stem, gated, inner = name.partition("fuser.")
            if name.startswith("position_net."):
                found[f"control.{name}"] = tensor
            elif gated and stem + gated in fusers:
                found[fusers[stem + gated] + inner] = tensor
            else:
                plain[name] = tensor
        return {**found, **{f"network.{name}": tensor for name, tensor in convert(plain).items()}}

    return work
