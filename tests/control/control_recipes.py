"""Tiny controls beside diffusers', for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel
from network_recipes import drawn, normal, randomised
from torch import Tensor

from sfumato.checkpoints.controlnet_keys import from_diffusers
from sfumato.checkpoints.sd_unet_config import to_config
from sfumato.control.controlnet import ControlNet
from sfumato.core.condition import Condition
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.sd_unet import SDUNet

_TINY: dict[str, Any] = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "tokens": 12}
_TWO: dict[str, Any] = {"head_channels": 16, "linear_projection": True}
PARITY: dict[str, dict[str, Any]] = {
    "sd1": {**_TINY, "attention": (1, 2), "heads": 8},
    "sd1, two blocks": {**_TINY, "attention": (1, 2), "heads": 4, "blocks": 2},
    "sd2": {**_TINY, **_TWO, "attention": (1, 2)},
    "sdxl": {**_TINY, **_TWO, "vector": 8 + 6 * 256, "attention": (2, 4), "depth": (0, 1, 3)},
}


def twins(settings: dict[str, Any]) -> tuple[ControlNet, Any, SDUNet]:
    """Our control and diffusers' with the same random weights, and a network that ours fits."""
    network = SDUNet(**settings)
    config = dict(to_config(network))
    known = set(ControlNetModel.__init__.__annotations__)
    config = {key: value for key, value in config.items() if key in known}
    reference = ControlNetModel(**config, conditioning_embedding_out_channels=(16, 32, 96, 256)).eval()
    reference.load_state_dict(drawn(reference.state_dict(), 1))
    control = ControlNet.of(network).eval()
    control.load_state_dict(from_diffusers(reference.state_dict()))
    return control.double(), reference.double(), randomised(network).double()


def asked(control: ControlNet) -> tuple[Tensor, Tensor, Condition, Tensor, dict[str, Any]]:
    x, time = normal(2, control.in_channels, 8, 16).double(), torch.tensor([3.0, 950.0])
    tokens, hint = normal(2, 9, control.tokens, seed=1).double(), normal(2, 3, 64, 128, seed=3).double()
    told: dict[str, Any] = {}
    vector = None
    if control.vector:
        pooled, sizes = normal(2, 8, seed=2), torch.tensor([[512.0, 768, 0, 64, 1024, 1000]] * 2)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        vector = torch.cat((pooled, sinusoid(sizes.flatten(), 256).view(2, -1)), dim=1)
    return x, time, Condition(tokens=tokens, vector=vector), hint, told
