"""Settings of unconditional U-Nets as diffusers writes them, of its UNet2DModel, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.checkpoints.diffusers_config import refuse_others
from sfumato.core.errors import InvalidInput
from sfumato.networks.adm import ADM

_EXPECTED: dict[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
"""What a configuration may say of what this network does in one way only; all are diffusers' defaults."""

_READ = (
    "attention_head_dim",
    "attn_norm_num_groups",
    "block_out_channels",
    "down_block_types",
    "downsample_type",
    "dropout",
    "in_channels",
    "layers_per_block",
    "num_class_embeds",
    "out_channels",
    "resnet_time_scale_shift",
    "time_embedding_dim",
    "up_block_types",
    "upsample_type",
)
_IDLE = ("num_train_timesteps", "sample_size")
"""What changes nothing here: the length of a table of times that is not there, and the size, which is told
by the card."""

_ORIGINAL: dict[bool, dict[str, Any]] = {
    True: {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "downsample_padding": 0},
    False: {"flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5, "downsample_padding": 1},
}
"""What goes together: in DDPM's own network, and in all that came after, which are diffusers' defaults."""

_CONVOLUTION = {"conv": False, "resnet": True}
_SHIFTS = {"default": False, "scale_shift": True}
_WHERE = "unet.config"


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the ADM that a configuration of diffusers is of, as `registry.build` takes it.

    Args:
        config: of a UNet2DModel; what it does not say is diffusers' default.

    Raises:
        InvalidInput: it wants what this network does not do; `where` names the setting.
    """
    try:
        return _read(config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise InvalidInput(f"no configuration of a U-Net ({error!r})", where=_WHERE) from None


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """As `from_config`; what makes no sense at all raises as Python does."""
    for key, expected in _EXPECTED.items():
        if config.get(key, expected) != expected and (key, config[key]) != ("act_fn", "swish"):
            raise _another(key, config[key])
    refuse_others(config, _WHERE, {}, (*_EXPECTED, *_READ, *_IDLE, *_ORIGINAL[True]))
    widths = tuple(config.get("block_out_channels", (224, 448, 672, 896)))
    blocks, channels = config.get("layers_per_block", 2), widths[0]
    if type(blocks) is not int or blocks < 1:
        raise _another("layers_per_block", blocks)
    if any(type(width) is not int or width < 1 or width % 32 for width in widths):
        raise InvalidInput(
            f"{widths} channels do not fall into 32 groups", where=f"{_WHERE}.block_out_channels"
        )
    if config.get("time_embedding_dim") not in (None, 4 * channels):
        raise _another("time_embedding_dim", config["time_embedding_dim"])
    attended, updown = _blocks(config, len(widths))
    original = not config.get("flip_sin_to_cos", True)
    for key, expected in _ORIGINAL[original].items():
        # Residual blocks halve by a mean, which pads nothing.
        idle = key == "downsample_padding" and (updown or len(widths) == 1)
        if (value := config.get(key, _ORIGINAL[False][key])) != expected and not idle:
            raise InvalidInput(
                f"{value!r} beside a flip_sin_to_cos of {not original} is neither DDPM's network nor a later "
                f"one, which has {expected!r}",
                where=f"{_WHERE}.{key}",
            )
    if (shift := config.get("resnet_time_scale_shift", "default")) not in _SHIFTS:
        raise _another("resnet_time_scale_shift", shift)
    groups = config.get("attn_norm_num_groups")
    # Where the embedding scales and shifts, the middle attends without a norm unless it is asked for.
    if groups not in ((32,) if _SHIFTS[shift] else (None, 32)):
        raise InvalidInput(
            f"a middle that attends with {f'a norm of {groups} groups' if groups else 'no norm'} is another "
            "network",
            where=f"{_WHERE}.attn_norm_num_groups",
        )
    return {
        "name": "adm",
        "in_channels": config.get("in_channels", 3),
        "out_channels": config.get("out_channels", 3),
        "channels": channels,
        "multipliers": tuple(_ratio(width, channels) for width in widths),
        "blocks": blocks,
        "attention": tuple(2**level for level, attends in enumerate(attended) if attends),
        **_heads(config.get("attention_head_dim", 8), widths, attended),
        "dropout": config.get("dropout", 0.0),
        "classes": config.get("num_class_embeds") or 0,
        "scale_shift": _SHIFTS[shift],
        "resblock_updown": updown,
        "original": original,
    }


def to_config(network: ADM) -> dict[str, Any]:
    """The configuration with which diffusers' UNet2DModel is the same network.

    Raises:
        InvalidInput: diffusers has no such network.
    """
    widths = [int(multiplier * network.channels) for multiplier in network.multipliers]
    if network.tokens:
        raise InvalidInput("diffusers has no such U-Net that is told tokens", where="network.tokens")
    if network.multipliers[0] != 1:
        raise InvalidInput(
            "diffusers has no such U-Net whose first level is not 1 wide", where="network.multipliers"
        )
    if any(width % 32 for width in widths):
        raise InvalidInput(f"{widths} channels do not fall into 32 groups", where="network.channels")
    attended = [2**level in network.attention for level in range(len(widths))]
    updown = network.resblock_updown
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in attended]
    up = ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attended)]
    if updown:
        down = [name if "Attn" in name else "ResnetDownsampleBlock2D" for name in down]
        up = [name if "Attn" in name else "ResnetUpsampleBlock2D" for name in up]
    return {
        "_class_name": "UNet2DModel",
        "act_fn": "silu",
        "attention_head_dim": _head(network, widths, attended),
        "attn_norm_num_groups": 32 if network.scale_shift else None,
        "block_out_channels": widths,
        "center_input_sample": False,
        "down_block_types": down,
        "downsample_type": "resnet" if updown else "conv",
        "dropout": network.dropout,
        "in_channels": network.in_channels,
        "layers_per_block": network.blocks,
        "norm_num_groups": 32,
        "num_class_embeds": network.classes or None,
        "out_channels": network.out_channels,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "time_embedding_type": "positional",
        "up_block_types": up,
        "upsample_type": "resnet" if updown else "conv",
        **_ORIGINAL[network.original],
    }


def _blocks(config: Mapping[str, Any], levels: int) -> tuple[list[bool], bool]:
    """(Whether each level attends, whether residual blocks resample) by the names of blocks."""
    usual = ["DownBlock2D", *["AttnDownBlock2D"] * 3], [*["AttnUpBlock2D"] * 3, "UpBlock2D"]
    kinds = {
        way: [str(name).removeprefix("UNetRes") for name in config.get(f"{way}_block_types", names)]
        for way, names in zip(("down", "up"), usual, strict=True)
    }
    attended: dict[str, list[bool]] = {}
    resampled = set()
    for way, names in kinds.items():
        said = config.get(f"{way}sample_type", "conv")
        if said not in _CONVOLUTION:
            raise _another(f"{way}sample_type", said)
        known = {
            f"{way.title()}Block2D": (False, False),
            f"Resnet{way.title()}sampleBlock2D": (False, True),
            f"Attn{way.title()}Block2D": (True, _CONVOLUTION[said]),
        }
        if len(names) != levels:
            raise InvalidInput(f"{len(names)} for {levels} levels", where=f"{_WHERE}.{way}_block_types")
        if odd := [name for name in names if name not in known]:
            raise _another(f"{way}_block_types", odd[0])
        attended[way] = [known[name][0] for name in names]
        # The last of a way resamples nothing.
        resampled |= {known[name][1] for name in names[:-1]}
    if attended["down"] != attended["up"][::-1]:
        raise InvalidInput("attention on one side alone", where=f"{_WHERE}.up_block_types")
    if len(resampled) > 1:
        raise InvalidInput(
            "some levels resample by residual blocks and some by convolutions",
            where=f"{_WHERE}.down_block_types",
        )
    return attended["down"], resampled == {True}


def _heads(size: int | None, widths: Sequence[int], attended: Sequence[bool]) -> dict[str, int]:
    """Heads by the channels of each; all the channels in one if not said."""
    if size is None:
        return {"heads": 1, "head_channels": 0}
    used = [width for width, attends in zip(widths, attended, strict=True) if attends] + [widths[-1]]
    if size < 1 or any(width % size for width in used):
        raise InvalidInput(
            f"{used} channels do not fall into heads of {size}", where=f"{_WHERE}.attention_head_dim"
        )
    return {"heads": 1, "head_channels": size}


def _head(network: ADM, widths: Sequence[int], attended: Sequence[bool]) -> int | None:
    """Channels a head, which are the same at every level; None where all are in one."""
    if network.head_channels or network.heads == 1:
        return network.head_channels or None
    used = [width for width, attends in zip(widths, attended, strict=True) if attends] + [widths[-1]]
    if len(set(used)) > 1:
        raise InvalidInput(
            f"diffusers has no such U-Net of {network.heads} heads at each of {used} channels",
            where="network.heads",
        )
    return used[0] // network.heads


def _ratio(width: int, channels: int) -> float:
    """width / channels, an int where it is one; never less, as the network cuts what is behind the point."""
    if width % channels == 0:
        return width // channels
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)


def _another(key: str, value: Any) -> InvalidInput:
    return InvalidInput(f"a U-Net with {key} {value!r} is another network", where=f"{_WHERE}.{key}")
