"""Names of latent U-Nets: complete lists of every published network, both ways, against diffusers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from sfumato.checkpoints.sd_unet_config import from_config, to_config
from sfumato.checkpoints.sd_unet_keys import (
    blocks_of,
    from_diffusers,
    is_diffusers,
    pairs,
    settings,
    table,
    to_compvis,
    to_diffusers,
)
from sfumato.checkpoints.translation import to_ours, to_theirs
from sfumato.core.errors import InvalidInput
from sfumato.networks.sd_unet import PUBLISHED, SDUNet
from sfumato.registry import build

COUNTS = {
    **dict.fromkeys(("sd1", "sd1_inpaint", "sd2", "sd2_inpaint", "sd2_depth", "ldm_text"), 686),
    "sdxl": 1680,
    "x4_upscaler": 687,
}
"""Weights as published; the others' numbers are diffusers'."""

NAMES = {
    "sd1": {
        "time_embed.0.weight": "time_embedding.linear_1.weight",
        "input_blocks.0.0.bias": "conv_in.bias",
        "input_blocks.1.0.emb_layers.1.weight": "down_blocks.0.resnets.0.time_emb_proj.weight",
        "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.4.0.skip_connection.bias": "down_blocks.1.resnets.0.conv_shortcut.bias",
        "input_blocks.8.1.proj_in.weight": "down_blocks.2.attentions.1.proj_in.weight",
        "input_blocks.11.0.out_layers.3.weight": "down_blocks.3.resnets.1.conv2.weight",
        "middle_block.1.transformer_blocks.0.norm1.weight": "mid_block.attentions.0.transformer_blocks.0."
        "norm1.weight",
        "middle_block.2.in_layers.0.weight": "mid_block.resnets.1.norm1.weight",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.5.1.norm.weight": "up_blocks.1.attentions.2.norm.weight",
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": "up_blocks.3.attentions.2."
        "transformer_blocks.0.ff.net.0.proj.weight",
        "out.2.weight": "conv_out.weight",
    },
    "sdxl": {
        "label_emb.0.0.weight": "add_embedding.linear_1.weight",
        "label_emb.0.2.bias": "add_embedding.linear_2.bias",
        "output_blocks.2.2.conv.bias": "up_blocks.0.upsamplers.0.conv.bias",
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": "down_blocks.2.attentions.1."
        "transformer_blocks.9.attn2.to_k.weight",
        "output_blocks.8.0.in_layers.2.weight": "up_blocks.2.resnets.2.conv1.weight",
    },
    "sdxl_refiner": {"output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight"},
    "x4_upscaler": {"label_emb.weight": "class_embedding.weight"},
}

FIRST = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "norm_num_groups": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd1": {**FIRST, "attention_head_dim": 8, "cross_attention_dim": 768, "center_input_sample": False},
    "sd2": {
        **FIRST,
        **{"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96},
        **{"use_linear_projection": True, "upcast_attention": True, "num_class_embeds": None},
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        **{"attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10]},
        **{"cross_attention_dim": 2048, "use_linear_projection": True},
        **{"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816},
    },
    "sdxl_refiner": {
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
        **{"attention_head_dim": [6, 12, 24, 24], "transformer_layers_per_block": 4},
        **{"cross_attention_dim": 1280, "use_linear_projection": True},
        **{"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2560},
    },
    "x4_upscaler": {
        "block_out_channels": [256, 512, 512, 1024],
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
        **{"only_cross_attention": [True, True, True, False], "num_class_embeds": 1000, "in_channels": 7},
        **{"attention_head_dim": 8, "cross_attention_dim": 1024, "use_linear_projection": True},
    },
}
"""What the published folders' unet/config.json say, without what is diffusers' default."""


def hollow(name: str) -> SDUNet:
    with torch.device("meta"):
        return SDUNet.published(name)


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def told(network: SDUNet) -> dict[str, Any]:
    """All settings."""
    return {key: getattr(network, key) for key in SDUNet.__dataclass_fields__}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_and_shape_is_that_of_diffusers(name: str) -> None:
    network = hollow(name)
    ours = network.state_dict()
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(to_config(network)).state_dict()
    assert len(ours) == len(theirs) == COUNTS.get(name, len(theirs))
    rows = pairs(PUBLISHED[name])
    assert [mine for mine, _ in rows] == list(ours)
    assert len({his for _, his in rows}) == len(rows)
    assert {his: tuple(ours[mine].shape) for mine, his in rows} == shapes(theirs)
    back = from_diffusers(theirs)
    assert all(back[mine] is theirs[his] for mine, his in rows)
    assert len(back) == len(rows)
    assert blocks_of(ours) == blocks_of(theirs) == network.blocks
    assert is_diffusers(theirs)
    assert not is_diffusers(ours)


@pytest.mark.parametrize("name", ["ldm_layout", "sd1", "sd2_depth", "sdxl", "x4_upscaler"])
def test_names_are_those_of_the_published_conversion(name: str) -> None:
    """diffusers' own reading of single files, fed with our names, tensor by tensor."""
    network = hollow(name)
    ours = network.state_dict()
    given = {f"model.diffusion_model.{key}": tensor for key, tensor in ours.items()}
    converted = convert_ldm_unet_checkpoint(given, to_config(network))
    assert {his: id(tensor) for his, tensor in converted.items()} == {
        his: id(ours[mine]) for mine, his in pairs(PUBLISHED[name])
    }


@pytest.mark.parametrize("name", NAMES)
def test_names_one_by_one(name: str) -> None:
    rows = dict(pairs(PUBLISHED[name]))
    assert {mine: rows[mine] for mine in NAMES[name]} == NAMES[name]


def test_tensors_go_both_ways_bit_for_bit() -> None:
    network = SDUNet(channels=32, multipliers=(1, 2), attention=(2,), heads=2, tokens=5, vector=3)
    ours = network.state_dict()
    rows = table(ours)
    theirs = to_theirs(rows, ours)
    assert set(theirs) != set(ours)
    for back in (to_ours(rows, theirs, "here"), from_diffusers(theirs)):
        assert list(back) == list(ours)
        assert all(torch.equal(back[key], ours[key]) for key in ours)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_told_by_its_shapes(name: str) -> None:
    network = hollow(name)
    found = json.loads(json.dumps(settings(shapes(network.state_dict()))))
    with torch.device("meta"):
        assert told(build("network", found)) == told(network)


@pytest.mark.parametrize(
    "other",
    [
        {"channels": 32, "multipliers": (1,), "blocks": 3, "attention": (), "heads": 8, "tokens": 7},
        {"channels": 64, "multipliers": (1, 1), "attention": (1, 2), "tokens": 10, "cross_only": (1,)},
        {"channels": 64, "multipliers": (1, 2), "attention": (2,), "depth": 3, "tokens": 9, "vector": 2},
        {"channels": 64, "multipliers": (1, 2, 3), "attention": (1, 2, 4), "depth": (1, 2, 3), "tokens": 5},
        {
            "channels": 64,
            "multipliers": (0.5, 1),
            "attention": (1, 2),
            "classes": 4,
            "linear_projection": True,
        }
        | {"heads": 1, "head_channels": 32, "tokens": 10, "cross_only": (1,)},
        {"channels": 32, "multipliers": (1, 2), "attention": (1, 2), "heads": 8},
    ],
)
def test_shapes_tell_all_but_the_heads_and_configurations_all(other: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = SDUNet(**other)
        found = build("network", settings(shapes(network.state_dict())))
        wanted = told(network)
        heads = {"heads": 0, "head_channels": 0}
        assert {**told(found), **heads} == {**wanted, **heads}
        if network.tokens and network.multipliers[0] == 1:
            again = build("network", from_config(json.loads(json.dumps(to_config(network)))))
            assert told(again) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_read(name: str) -> None:
    with torch.device("meta"):
        assert told(build("network", from_config(CONFIGS[name]))) == told(hollow(name))


@pytest.mark.parametrize(
    ("where", "config"),
    [
        ("dual_cross_attention", {"dual_cross_attention": True}),
        ("class_embed_type", {"class_embed_type": "projection"}),
        ("time_cond_proj_dim", {"time_cond_proj_dim": 256}),
        ("encoder_hid_dim", {"encoder_hid_dim": 64}),
        ("addition_embed_type", {"addition_embed_type": "image"}),
        ("only_cross_attention", {"only_cross_attention": True}),
        ("layers_per_block", {"layers_per_block": [2, 2, 2, 3]}),
        ("transformer_layers_per_block", {"transformer_layers_per_block": [1, 2]}),
        ("cross_attention_dim", {"cross_attention_dim": None}),
        ("down_block_types", {"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4}),
        ("down_block_types", {"up_block_types": ["UpBlock2D"] * 4}),
        ("attention_head_dim", {"attention_head_dim": [8, 5, 8, 8]}),
        ("unet.config", {"block_out_channels": []}),
        ("unet.config", {"addition_embed_type": "text_time"}),
        ("unet.config", {"down_block_types": 3}),
        ("unet.config", {"attention_head_dim": [1, 2, 0, 0]}),
    ],
)
def test_configurations_of_other_networks_are_refused_by_name(where: str, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        from_config({**CONFIGS["sd1"], **config})
    assert error.value.where.endswith(where)


def test_networks_that_diffusers_has_not_are_refused() -> None:
    with torch.device("meta"):
        for other in ({"tokens": 0}, {"tokens": 4, "channels": 48}, {"tokens": 4, "multipliers": (0.5, 1)}):
            with pytest.raises(InvalidInput):
                to_config(SDUNet(**other))


@pytest.mark.parametrize(
    "name", ["", "weight", "input_blocks.1.3.weight", "output_blocks.x.0.weight", "down_blocks.0.op.weight"]
)
def test_names_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        to_diffusers(name, 2)
    with pytest.raises(InvalidInput):
        to_compvis(name, 2, ())


def test_shapes_of_nothing_are_refused() -> None:
    whole = shapes(hollow("sd1").state_dict())
    for lost in ("time_embed.0.weight", "middle_block.1.proj_in.weight", "out.2.weight"):
        with pytest.raises(InvalidInput):
            settings({key: shape for key, shape in whole.items() if key != lost})
    for wrong in ({}, {"input_blocks.x.0.weight": (1,)}, {key: () for key in whole}):
        with pytest.raises(InvalidInput):
            settings(wrong)
