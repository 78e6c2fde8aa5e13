"""Names and settings of unconditional U-Nets: complete lists of published networks, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor

from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints.diffusers_config import vq_from_config, vq_to_config
from sfumato.checkpoints.scheduler_config import model_from_config, walk_from_config
from sfumato.checkpoints.scheduler_config import to_config as scheduler_to_config
from sfumato.checkpoints.translation import to_ours, to_theirs
from sfumato.checkpoints.unet2d import from_config, to_config
from sfumato.checkpoints.unet2d_keys import from_diffusers, table
from sfumato.core.errors import InvalidInput
from sfumato.networks.adm import ADM
from sfumato.registry import build

_DDPM: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
_LATER = {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-05}
_LARGE = {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "google/ddpm-cifar10-32": {
        **_DDPM,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "sample_size": 32,
    },
    # Church, bedroom and cat are the same.
    "google/ddpm-celebahq-256": {**_DDPM, **_LARGE, "sample_size": 256},
    "ddpm-butterflies-128": {
        **{**_DDPM, **_LATER, **_LARGE},
        **{"attention_head_dim": 8, "add_attention": True, "resnet_time_scale_shift": "default"},
        "sample_size": 128,
    },
    "CompVis/ldm-celebahq-256": {
        **_DDPM,
        **_LATER,
        "attention_head_dim": 32,
        "block_out_channels": [224, 448, 672, 896],
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "sample_size": 64,
    },
    # A network of ADM's kind, resampled by residual blocks: that of ImageNet 64, its variance left out.
    "imagenet_64": {
        "attention_head_dim": 64,
        "attn_norm_num_groups": 32,
        "block_out_channels": [192, 384, 576, 768],
        "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
        "downsample_type": "resnet",
        "layers_per_block": 3,
        "num_class_embeds": 1000,
        "resnet_time_scale_shift": "scale_shift",
        "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
        "upsample_type": "resnet",
    },
}
COUNTS = {
    "google/ddpm-cifar10-32": 35_746_307,
    "google/ddpm-celebahq-256": 113_673_219,
    "ddpm-butterflies-128": 113_673_219,
    "CompVis/ldm-celebahq-256": 274_056_163,
}
PUBLISHED = {
    "google/ddpm-cifar10-32": ("ddpm_cifar", {"dropout": 0.0}),
    "google/ddpm-celebahq-256": ("ddpm_256", {}),
    "imagenet_64": ("imagenet_64", {"dropout": 0.0, "out_channels": 3, "new_attention_order": False}),
}
"""The same network as it is known here."""

VQ_F4 = {
    "_class_name": "VQModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
"""Of CompVis/ldm-celebahq-256."""


def described(name: str) -> dict[str, Any]:
    return from_config(CONFIGS[name])


def hollow(name: str) -> ADM:
    with torch.device("meta"):
        return build("network", described(name))


def theirs(name: str) -> UNet2DModel:
    said = {key: value for key, value in CONFIGS[name].items() if not key.startswith("_")}
    with torch.device("meta"):
        return UNet2DModel(**said)


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_name_and_shape_is_that_of_diffusers(name: str) -> None:
    network, other = hollow(name), theirs(name)
    ours, his = network.state_dict(), other.state_dict()
    rows = table(ours, described(name))
    assert [row.ours for row in rows] == list(ours)
    named = [each for row in rows for each in row.theirs]
    assert len(named) == len(set(named))
    assert set(named) == set(his)
    assert shapes(to_theirs(rows, ours)) == shapes(his)
    assert shapes(to_ours(rows, his, "unet")) == shapes(from_diffusers(described(name), his)) == shapes(ours)
    count = sum(each.numel() for each in network.parameters())
    assert count == sum(each.numel() for each in other.parameters()) == COUNTS.get(name, count)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_settings_there_and_back(name: str) -> None:
    network = hollow(name)
    said = to_config(network)
    assert from_config(said) == described(name)
    kept = {k: v for k, v in CONFIGS[name].items() if k in said and not k.startswith("_")}
    assert {key: said[key] for key in kept} == kept
    if name in PUBLISHED:
        known, but = PUBLISHED[name]
        with torch.device("meta"):
            same = ADM.published(known)
        expected = {key: getattr(same, key) for key in ADM.__dataclass_fields__} | but
        found = {key: getattr(network, key) for key in ADM.__dataclass_fields__}
        assert found == expected


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("heads", [{"heads": 4}, {"head_channels": 4}])
def test_projections_are_split_by_heads(order: bool, heads: dict[str, int]) -> None:
    """q of head 1 is found where either order has it, and nothing is lost."""
    settings = {"blocks": 1, "new_attention_order": order, **heads}
    whole = torch.arange(24 * 8).view(24, 8, 1)
    bias = torch.arange(24)
    ours = {"middle_block.1.qkv.weight": whole, "middle_block.1.qkv.bias": bias}
    rows = table(ours, settings)
    parts = to_theirs(rows, ours)
    size = 2 if "heads" in heads else 4
    first = (0 if order else 3 * size) + (size if order else 0)
    held = parts["mid_block.attentions.0.to_q.weight"][size : 2 * size]
    assert torch.equal(held, whole[first : first + size, :, 0])
    assert torch.equal(parts["mid_block.attentions.0.to_v.bias"][-size:], bias[-size:])
    back = to_ours(rows, parts, "unet")
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_fields_of_widths_that_do_not_divide() -> None:
    """Widths are cut from the product of two floats, and must come out whole."""
    for width in range(32, 4096, 32):
        found = from_config(
            {**CONFIGS["CompVis/ldm-celebahq-256"], "block_out_channels": [224, width, 32, 64]}
        )
        assert int(found["multipliers"][1] * 224) == width


REFUSED: list[tuple[str, Any, str]] = [
    ("act_fn", "gelu", ""),
    ("add_attention", False, ""),
    ("attention_head_dim", 24, ""),
    ("attention_head_dim", 0, ""),
    ("attn_norm_num_groups", 16, ""),
    ("block_out_channels", [128, 100, 256, 256], ""),
    ("block_out_channels", [128, 256], "down_block_types"),
    ("center_input_sample", True, ""),
    ("class_embed_type", "timestep", ""),
    ("down_block_types", ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D", "DownBlock2D"], ""),
    ("down_block_types", ["DownBlock2D"] * 4, "up_block_types"),
    ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2], ""),
    ("downsample_padding", 1, ""),
    ("downsample_type", "resnet", "down_block_types"),
    ("downsample_type", "mean", ""),
    ("flip_sin_to_cos", True, "freq_shift"),
    ("freq_shift", 0, ""),
    ("layers_per_block", 0, ""),
    ("layers_per_block", [2, 2, 2, 2], ""),
    ("mid_block_scale_factor", 1.4142, ""),
    ("mid_block_type", None, ""),
    ("norm_eps", 1e-5, ""),
    ("norm_num_groups", 16, ""),
    ("resnet_pre_norm", 2, ""),
    ("resnet_time_scale_shift", "spatial", ""),
    ("resnet_time_scale_shift", "scale_shift", "attn_norm_num_groups"),
    ("time_embedding_dim", 64, ""),
    ("time_embedding_type", "fourier", ""),
    ("up_block_types", ["UpBlock2D", "UpBlock2D", "UpBlock2D", "AttnUpBlock2D"], ""),
]


@pytest.mark.parametrize("key, value, where", REFUSED, ids=[f"{case[0]} {case[1]}" for case in REFUSED])
def test_what_changes_the_network_is_refused_by_name(key: str, value: Any, where: str) -> None:
    with pytest.raises(InvalidInput) as told:
        from_config({**CONFIGS["google/ddpm-cifar10-32"], key: value})
    assert told.value.where == f"unet.config.{where or key}"


@pytest.mark.parametrize("value", [[], 3, None, ["a"]])
def test_what_makes_no_sense_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match=r"unet\.config"):
        from_config({**CONFIGS["google/ddpm-cifar10-32"], "block_out_channels": value})


def test_other_names_of_the_same() -> None:
    base = CONFIGS["google/ddpm-cifar10-32"]
    plain = from_config(base)
    old = [f"UNetRes{name}" for name in base["down_block_types"]]
    assert from_config({**base, "down_block_types": old, "act_fn": "swish", "dropout": 0.0}) == plain
    assert from_config({**base, "num_train_timesteps": 1000, "attn_norm_num_groups": 32}) == plain


def test_the_published_first_stage() -> None:
    described, scale = vq_from_config(VQ_F4)
    with torch.device("meta"):
        found, same = build("autoencoder", described), VQ.published("f4")
        other = VQModel(**{key: value for key, value in VQ_F4.items() if not key.startswith("_")})
    assert scale == 1.0
    for key in ("codes", "channels", "width", "blocks", "mid_attention", "groups", "in_channels"):
        assert getattr(found, key) == getattr(same, key), key
    assert [*found.multipliers, *found.attention] == [*same.multipliers, *same.attention]
    assert sum(each.numel() for each in found.parameters()) == 55_322_782
    assert sum(each.numel() for each in other.parameters()) == 55_322_782
    assert vq_from_config(vq_to_config(found, 0.5)) == (described, 0.5)
    for key, value in (("vq_embed_dim", 4), ("norm_type", "spatial"), ("act_fn", "relu"), ("odd", 1)):
        with pytest.raises(InvalidInput, match=key):
            vq_from_config({**VQ_F4, key: value})
    with pytest.raises(InvalidInput, match="up_block_types"):
        vq_from_config({**VQ_F4, "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 2]})


@pytest.mark.parametrize(
    "said, ours", [("fixed_small", None), ("fixed_large", "large"), ("fixed_large_log", "large")]
)
def test_the_variance_of_ddpm_is_kept(said: str, ours: str | None) -> None:
    config = {"_class_name": "DDPMScheduler", "variance_type": said}
    walk = walk_from_config(config)
    assert walk["sampler"] == {"name": "ancestral", **({"variance": ours} if ours else {})}
    process, _ = model_from_config(config)
    written = scheduler_to_config(build("process", process), build("prediction", "noise"), walk)
    assert written["variance_type"] == said.removesuffix("_log")
