"""Names of autoencoders' weights: a bijection with diffusers', on complete published key lists."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from network_recipes import drawn
from torch import Tensor, nn

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.kl import PUBLISHED as KLS
from sfumato.autoencoders.tiny import Tiny
from sfumato.autoencoders.vq import PUBLISHED as VQS
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints.translation import to_ours, to_theirs
from sfumato.checkpoints.vae_keys import (
    from_diffusers,
    is_diffusers,
    levels_of,
    settings,
    table,
    taesd,
    to_compvis,
    to_diffusers,
)
from sfumato.core.errors import InvalidInput
from sfumato.registry import build

EVERY = [*(("kl", name) for name in sorted(KLS)), *(("vq", name) for name in sorted(VQS))]
KINDS = {"kl": KL, "vq": VQ}


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def ours(kind: str, name: str) -> nn.Module:
    with torch.device("meta"):
        return KINDS[kind].published(name)


def theirs(kind: str, name: str) -> nn.Module:
    """The same autoencoder as diffusers has it."""
    mine = ours(kind, name)
    kinds = ["Attn" if 2**level in mine.attention else "" for level in range(len(mine.multipliers))]
    rest = (
        {"use_quant_conv": mine.quant_convs, "use_post_quant_conv": mine.quant_convs}
        if kind == "kl"
        else {"num_vq_embeddings": mine.codes}
    )
    with torch.device("meta"):
        return (AutoencoderKL if kind == "kl" else VQModel)(
            down_block_types=[f"{attn}DownEncoderBlock2D" for attn in kinds],
            up_block_types=[f"{attn}UpDecoderBlock2D" for attn in reversed(kinds)],
            block_out_channels=[mine.width * m for m in mine.multipliers],
            layers_per_block=mine.blocks,
            latent_channels=mine.channels,
            mid_block_add_attention=mine.mid_attention,
            **rest,
        )


@pytest.mark.parametrize("kind, name", EVERY)
def test_every_name_has_one_of_diffusers_and_back(kind: str, name: str) -> None:
    mine, his = shapes(ours(kind, name)), shapes(theirs(kind, name))
    levels = levels_of(mine)
    assert levels == levels_of(his)
    forth = {key: to_diffusers(key, levels) for key in mine}
    assert set(forth.values()) == set(his)
    assert len(mine) == len(his)
    assert {to_compvis(key, levels): key for key in his} == forth
    assert not is_diffusers(mine)
    assert is_diffusers(his)


@pytest.mark.parametrize("kind, name", EVERY)
def test_shapes_are_those_of_diffusers_but_for_attention(kind: str, name: str) -> None:
    mine, his = shapes(ours(kind, name)), shapes(theirs(kind, name))
    for row in table(mine):
        (key,) = row.theirs
        if ".attn" in row.ours and row.ours.endswith((".q.weight", ".proj_out.weight")):
            assert mine[row.ours] == (*his[key], 1, 1)
        elif mine[row.ours] != his[key]:
            assert mine[row.ours][:2] == his[key]
            assert row.ours.endswith((".k.weight", ".v.weight"))


def test_the_published_list_of_stable_diffusion() -> None:
    """Names that its files hold, by hand, from each corner of the list."""
    mine = shapes(ours("kl", "f8"))
    assert len(mine) == 248
    pairs = {
        "decoder.up.3.block.2.conv2.bias": "decoder.up_blocks.0.resnets.2.conv2.bias",
        "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
        "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
        "encoder.down.2.downsample.conv.bias": "encoder.down_blocks.2.downsamplers.0.conv.bias",
        "encoder.down.1.block.0.norm1.weight": "encoder.down_blocks.1.resnets.0.norm1.weight",
        "encoder.mid.attn_1.proj_out.weight": "encoder.mid_block.attentions.0.to_out.0.weight",
        "decoder.mid.attn_1.norm.bias": "decoder.mid_block.attentions.0.group_norm.bias",
        "decoder.mid.attn_1.k.bias": "decoder.mid_block.attentions.0.to_k.bias",
        "encoder.mid.block_2.norm2.weight": "encoder.mid_block.resnets.1.norm2.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "encoder.conv_in.weight": "encoder.conv_in.weight",
        "post_quant_conv.weight": "post_quant_conv.weight",
    }
    for key, his in pairs.items():
        assert key in mine
        assert to_diffusers(key, 4) == his
        assert to_compvis(his, 4) == key
    old = "encoder.mid_block.attentions.0.proj_attn.weight"
    assert to_diffusers("encoder.mid.attn_1.proj_out.weight", 4, old=True) == old
    assert to_compvis(old, 4) == "encoder.mid.attn_1.proj_out.weight"


def small() -> dict[str, Tensor]:
    return drawn(VQ(9, 3, 8, (1, 2), 1, (2,)).state_dict(), 0)


@pytest.mark.parametrize("old", [False, True])
def test_weights_come_back_unchanged(old: bool) -> None:
    mine = small()
    rows = table(mine, old)
    his = to_theirs(rows, mine)
    assert his[f"encoder.mid_block.attentions.0.{'query' if old else 'to_q'}.weight"].shape == (16, 16)
    for back in (to_ours(rows, his, "file"), from_diffusers(his)):
        assert back.keys() == mine.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in mine.items())


@pytest.mark.parametrize("kind, name", EVERY)
def test_settings_are_found_by_shapes(kind: str, name: str) -> None:
    expected = ours(kind, name)
    with torch.device("meta"):
        found = build("autoencoder", settings(shapes(expected)))
    assert type(found) is type(expected)
    assert shapes(found) == shapes(expected)
    assert found.attention == expected.attention


def test_settings_of_unusual_widths_and_of_tiny() -> None:
    for autoencoder in (KL(2, 24, (3, 4), 1, (1,), False), Tiny(5, 16, (1, 2, 1), (3, 2, 1)), Tiny()):
        found = build("autoencoder", settings(shapes(autoencoder)))
        if isinstance(found, Tiny):
            assert shapes(found) == shapes(autoencoder)
        else:
            assert (found.width, found.multipliers, found.mid_attention) == (24, (3, 4), False)


def test_the_two_files_of_taesd() -> None:
    """Its decoder's first operation has no weights and is not counted by the conversion."""
    mine = Tiny(5, 8, (1, 1), (1, 1)).state_dict()
    encoder = {k.removeprefix("encoder.layers."): v for k, v in mine.items() if k.startswith("encoder")}
    decoder = {}
    for key, value in mine.items():
        if key.startswith("decoder"):
            number, rest = key.removeprefix("decoder.layers.").split(".", 1)
            decoder[f"{int(number) + 1}.{rest}"] = value
    assert "1.weight" in decoder
    found = taesd(encoder, decoder)
    assert found.keys() == mine.keys()
    assert all(found[key] is value for key, value in mine.items())


@pytest.mark.parametrize(
    "name", ["encoder.up.0", "encoder.down.0.norm.weight", "model.diffusion_model.out.0.weight", "", "x"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="no name"):
        to_diffusers(name, 4)
    with pytest.raises(InvalidInput, match="no name"):
        to_compvis(name, 4)


def test_other_shapes_are_refused() -> None:
    for wrong in ({}, {"encoder.conv_in.weight": (8, 3, 3, 3)}, {"encoder.layers.0.weight": (8, 3, 3, 3)}):
        with pytest.raises(InvalidInput, match="no autoencoder"):
            settings(wrong)
