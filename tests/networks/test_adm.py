"""ADM: published sizes and names, parity with diffusers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DModel
from network_recipes import drawn, normal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.condition import Condition
from sfumato.core.errors import NotFound
from sfumato.networks.adm import ADM, PUBLISHED
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.residual import ResidualBlock

# Published sizes --------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[int, int | float, float | None]] = {
    "imagenet_64": (64, 295_904_454, 109.7),
    "imagenet_128": (128, 421_529_606, 306.9),
    "imagenet_256": (256, 553_838_086, 1119.8),
    "imagenet_256_unconditional": (256, 552_814_086, 1119.8),
    "lsun_256": (256, 552_814_086, 1119.8),
    "imagenet_512": (512, 558_997_638, 1982.3),
    "imagenet_64_to_256": (256, 311_795_910, None),
    "imagenet_128_to_512": (512, 308_835_270, None),
    "improved_cifar": (32, 52.55, None),
    "improved_imagenet_64": (64, 121.06, None),
    "improved_imagenet_64_classes": (64, 273.05, None),
    "improved_lsun_256": (256, 113.68, None),
    "ddpm_cifar": (32, 35_746_307, None),
    "ddpm_256": (256, 113_673_219, None),
}
"""Pixels; parameters, exact or in millions to the digits published; billions of multiplications a call."""


def test_every_published_network_has_a_size() -> None:
    assert sorted(SIZES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_network_has_its_published_size(name: str) -> None:
    size, expected, gmacs = SIZES[name]
    with torch.device("meta"):
        network = ADM.published(name)
        count = sum(p.numel() for p in network.parameters())
        assert count == expected if isinstance(expected, int) else round(count / 1e6, 2) == expected
        if gmacs is not None:
            vector = torch.zeros(1, network.classes) if network.classes else None
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, 3, size, size), torch.zeros(1), Condition(vector=vector))
            assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-3)


def test_the_other_upsampler_to_512_has_the_multipliers_of_512() -> None:
    """302.88 M are published; the script gives it the multipliers of 256, which make 308.84 M."""
    with torch.device("meta"):
        network = ADM(**{**PUBLISHED["imagenet_128_to_512"], "multipliers": (0.5, 1, 1, 2, 2, 4, 4)})
    assert sum(p.numel() for p in network.parameters()) == 302_875_782


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean imagenet_64"):
        ADM.published("imagenet64")


def test_state_dict_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        keys = set(ADM.published("imagenet_64").state_dict())
        plain = set(ADM(attention=(2,), multipliers=(1, 2), blocks=1).state_dict())
    residual = {
        f"{layer}.{part}"
        for layer in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
        for part in ("weight", "bias")
    }
    attention = {f"{layer}.{part}" for layer in ("norm", "qkv", "proj_out") for part in ("weight", "bias")}
    assert {k for k in keys if k.startswith("middle_block.")} == {
        *(f"middle_block.{i}.{k}" for i in (0, 2) for k in residual),
        *(f"middle_block.1.{k}" for k in attention),
    }
    # Three blocks and a residual block that halves, four levels: 16 stages down, 16 up.
    for way in ("input_blocks", "output_blocks"):
        assert {int(k.split(".")[1]) for k in keys if k.startswith(way)} == set(range(16))
    assert {k for k in keys if k.startswith("input_blocks.4.")} == {f"input_blocks.4.0.{k}" for k in residual}
    assert {k for k in keys if k.startswith("output_blocks.3.2.")} == {
        f"output_blocks.3.2.{k}" for k in residual
    }
    outer = {k for k in keys if "_block" not in k}
    assert outer == {
        "label_emb.weight",
        *(f"{m}.{p}" for m in ("time_embed.0", "time_embed.2", "out.0", "out.2") for p in ("weight", "bias")),
    }
    assert {"input_blocks.0.0.weight", "input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"} <= plain
    assert {"input_blocks.3.0.skip_connection.weight", "input_blocks.3.1.qkv.weight"} <= plain


# Parity with diffusers --------------------------------------------------------------------------------------

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def places(network: ADM) -> Iterator[tuple[str, str, nn.Module]]:
    """(our module, diffusers' module, module) of every block."""
    count = network.blocks + 1
    for i, stage in enumerate(network.input_blocks):
        level, place = divmod(i - 1, count)
        for j, block in enumerate(stage if i else ()):
            kind = "downsamplers.0" if place == network.blocks else f"{('resnets', 'attentions')[j]}.{place}"
            yield f"input_blocks.{i}.{j}", f"down_blocks.{level}.{kind}", block
    for j, block in enumerate(network.middle_block):
        kind = ("resnets.0", "attentions.0", "resnets.1")[j]
        yield f"middle_block.{j}", f"mid_block.{kind}", block
    for i, stage in enumerate(network.output_blocks):
        level, place = divmod(i, count)
        for j, block in enumerate(stage):
            kind = f"resnets.{place}" if j == 0 else "upsamplers.0"
            if isinstance(block, SpatialAttention):
                kind = f"attentions.{place}"
            yield f"output_blocks.{i}.{j}", f"up_blocks.{level}.{kind}", block


def translated(network: ADM, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of diffusers' UNet2DModel under our names; every key of theirs is used once."""
    ours: dict[str, Tensor] = {}
    left = dict(theirs)

    def move(mine: str, his: str) -> None:
        for part in ("weight", "bias"):
            if f"{his}.{part}" in left:
                ours[f"{mine}.{part}"] = left.pop(f"{his}.{part}")

    for mine, his in _OUTER.items():
        move(mine, his)
    for mine, his, block in places(network):
        if isinstance(block, ResidualBlock):
            for a, b in _RESIDUAL.items():
                move(f"{mine}.{a}", f"{his}.{b}")
        elif isinstance(block, SpatialAttention):
            move(f"{mine}.norm", f"{his}.group_norm")
            move(f"{mine}.proj_out", f"{his}.to_out.0")
            ours[f"{mine}.proj_out.weight"] = ours[f"{mine}.proj_out.weight"][..., None]
            for part in ("weight", "bias"):
                three = [left.pop(f"{his}.to_{x}.{part}").unflatten(0, (block.heads, -1)) for x in "qkv"]
                joined = torch.stack(three, dim=0 if block.new_order else 1).flatten(0, 2)
                ours[f"{mine}.qkv.{part}"] = joined[..., None] if part == "weight" else joined
        else:
            move(f"{mine}.op" if "input" in mine else f"{mine}.conv", f"{his}.conv")
    assert not left
    return ours


def _reference(network: ADM) -> UNet2DModel:
    """diffusers' U-Net of the same settings."""
    levels = len(network.multipliers)
    attends = [2**i in network.attention for i in range(levels)]
    change = "resnet" if network.resblock_updown else "conv"
    down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends]
    up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    if network.resblock_updown:
        down = [d if d.startswith("Attn") else "ResnetDownsampleBlock2D" for d in down]
        up = [u if u.startswith("Attn") else "ResnetUpsampleBlock2D" for u in up]
    return UNet2DModel(
        sample_size=16,
        in_channels=network.in_channels,
        out_channels=network.out_channels,
        block_out_channels=tuple(int(m * network.channels) for m in network.multipliers),
        layers_per_block=network.blocks,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_type=change,
        upsample_type=change,
        downsample_padding=0 if network.original else 1,
        flip_sin_to_cos=not network.original,
        freq_shift=1 if network.original else 0,
        norm_eps=1e-6 if network.original else 1e-5,
        attention_head_dim=network.head_channels or None,
        resnet_time_scale_shift="scale_shift" if network.scale_shift else "default",
        # Else the middle attention has no norm beside scale-shift.
        attn_norm_num_groups=32,
        num_class_embeds=network.classes or None,
    ).eval()


PARITY = {
    "google/ddpm-cifar10-32": {"channels": 32, "attention": (2,), "original": True},
    "added, convolutions": {"channels": 32, "multipliers": (1, 2), "attention": (2,), "head_channels": 16},
    "scale-shift, residual resampling, classes": {
        "channels": 32,
        "multipliers": (1, 2, 3),
        "blocks": 1,
        "attention": (2, 4),
        "head_channels": 32,
        "classes": 5,
        "scale_shift": True,
        "resblock_updown": True,
        "out_channels": 6,
    },
    "new order": {
        "channels": 32,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (1, 2),
        "head_channels": 8,
        "scale_shift": True,
        "new_attention_order": True,
    },
}


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_diffusers(name: str) -> None:
    network = ADM(**PARITY[name]).eval()
    reference = _reference(network)
    reference.load_state_dict(drawn(reference.state_dict(), 1))
    network.load_state_dict(translated(network, reference.state_dict()))
    x, time = normal(2, network.in_channels, 16, 16), torch.tensor([3.0, 950.0])
    labels = torch.tensor([1, 4]) if network.classes else None
    vector = None if labels is None else torch.eye(network.classes)[labels]
    with torch.no_grad():
        theirs = reference(x, time, class_labels=labels).sample
        ours = network(x, time, Condition(vector=vector))
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
