"""Settings of latent U-Nets as diffusers writes them, in a folder's unet/config.json, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.checkpoints.diffusers_config import refuse_others
from sfumato.core.errors import InvalidInput
from sfumato.networks.layers.sd_encoder import SDEncoder
from sfumato.networks.sd_unet import SDUNet

_EXPECTED: dict[str, Any] = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
"""What a configuration may say of what this network does in one way only; all are diffusers' defaults."""

_READ = (
    "addition_embed_type",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "dropout",
    "in_channels",
    "layers_per_block",
    "num_class_embeds",
    "only_cross_attention",
    "out_channels",
    "projection_class_embeddings_input_dim",
    "transformer_layers_per_block",
    "up_block_types",
    "use_linear_projection",
)
_IDLE = ("addition_embed_type_num_heads", "addition_time_embed_dim", "sample_size", "upcast_attention")
"""What changes nothing here: sizes' width follows from the vector's, and softmax is taken in float32."""

_FREQUENCIES = 256
"""Width of the sinusoids of each of XL's sizes, which are part of the vector here."""


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the U-Net that a configuration of diffusers is of, as `registry.build` takes it.

    Args:
        config: of a UNet2DConditionModel; what it does not say is diffusers' default.

    Raises:
        InvalidInput: it wants what this network does not do; `where` names the setting.
    """
    try:
        return _read(config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise InvalidInput(f"no configuration of a U-Net ({error!r})", where="unet.config") from None


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """As `from_config`; what makes no sense at all raises as Python does."""
    for key, expected in _EXPECTED.items():
        if config.get(key, expected) != expected:
            raise InvalidInput(
                f"a U-Net with {key} {config[key]!r} is another network", where=f"unet.config.{key}"
            )
    refuse_others(config, "unet.config", {}, (*_EXPECTED, *_READ, *_IDLE))
    widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
    levels, channels = len(widths), widths[0]
    downs = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    ups = config.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    attended = [kind.startswith("CrossAttn") for kind in downs]
    plain = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    if {*downs, *ups} - plain or attended != [kind.startswith("CrossAttn") for kind in reversed(ups)]:
        raise InvalidInput("blocks of another network", where="unet.config.down_block_types")
    depths = _each(config, "transformer_layers_per_block", 1, levels)
    spoken = {depth for depth, attends in zip(depths[:-1], attended, strict=False) if attends} | {depths[-1]}
    blocks = _each(config, "layers_per_block", 2, levels)
    tokens = _each(config, "cross_attention_dim", 1280, levels)
    for key, values in {"layers_per_block": blocks, "cross_attention_dim": tokens}.items():
        if len(set(values)) > 1 or not values[0]:
            raise InvalidInput(f"{values} is not the same at every level", where=f"unet.config.{key}")
    only = config.get("only_cross_attention", False)
    if only is True:
        raise InvalidInput(
            "no self-attention in the middle is another network", where="unet.config.only_cross_attention"
        )
    vector = 0
    if config.get("addition_embed_type") is not None:
        if config["addition_embed_type"] != "text_time":
            raise InvalidInput(
                f"a U-Net told {config['addition_embed_type']!r} is another network",
                where="unet.config.addition_embed_type",
            )
        vector = config["projection_class_embeddings_input_dim"]
    return {
        "name": "sd_unet",
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "channels": channels,
        "multipliers": tuple(_ratio(width, channels) for width in widths),
        "blocks": blocks[0],
        "attention": tuple(2**level for level in range(levels) if attended[level]),
        "depth": depths[-1] if len(spoken) == 1 else _depths(depths, attended),
        **_heads(_each(config, "attention_head_dim", 8, levels), widths, attended),
        "tokens": tokens[0],
        "linear_projection": config.get("use_linear_projection", False),
        "cross_only": tuple(2**level for level in range(levels) if only and only[level] and attended[level]),
        "vector": vector,
        "classes": config.get("num_class_embeds") or 0,
        "dropout": config.get("dropout", 0.0),
    }


def to_config(network: SDUNet) -> dict[str, Any]:
    """The configuration with which diffusers' UNet2DConditionModel is the same network.

    Raises:
        InvalidInput: diffusers has no such network.
    """
    config = encoder_to_config(network)
    ups = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    return {
        **config,
        "_class_name": "UNet2DConditionModel",
        "out_channels": network.out_channels,
        "up_block_types": ups,
        "dropout": network.dropout,
    }


def encoder_to_config(network: SDEncoder) -> dict[str, Any]:
    """What the configurations of U-Nets and of the controls that copy their way down say alike.

    Raises:
        InvalidInput: diffusers has no such network.
    """
    if not network.tokens:
        raise InvalidInput("diffusers has no such U-Net without tokens", where="tokens")
    levels = range(len(network.multipliers))
    widths = [int(multiplier * network.channels) for multiplier in network.multipliers]
    if network.multipliers[0] != 1:
        raise InvalidInput("diffusers has no such U-Net whose first level is not 1 wide", where="multipliers")
    if any(width % 32 for width in widths):
        raise InvalidInput(f"{widths} channels do not fall into 32 groups", where="channels")
    attended = [2**level in network.attention for level in levels]
    depth, size = network.depth, network.head_channels
    config: dict[str, Any] = {
        "in_channels": network.in_channels,
        "block_out_channels": widths,
        "layers_per_block": network.blocks,
        "down_block_types": [f"{'CrossAttn' if attends else ''}DownBlock2D" for attends in attended],
        # A number of blocks where there is no attention is read and not heeded, but must not be 0.
        "transformer_layers_per_block": depth if isinstance(depth, int) else [max(1, each) for each in depth],
        # Its name notwithstanding, this is the number of heads.
        "attention_head_dim": [width // size or 1 for width in widths] if size else network.heads,
        "cross_attention_dim": network.tokens,
        "use_linear_projection": network.linear_projection,
    }
    if network.cross_only:
        config["only_cross_attention"] = [2**level in network.cross_only for level in levels]
    if network.classes:
        config["num_class_embeds"] = network.classes
    if network.vector:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _FREQUENCIES,
            "projection_class_embeddings_input_dim": network.vector,
        }
    return config


def _each(config: Mapping[str, Any], key: str, default: int, levels: int) -> tuple[int, ...]:
    """A setting that is one number, or one a level."""
    value = config.get(key, default)
    found = tuple(value) if isinstance(value, Sequence) else (value,) * levels
    if len(found) != levels or not all(isinstance(each, int) for each in found):
        raise InvalidInput(f"{value!r} is not a number a level", where=f"unet.config.{key}")
    return found


def _heads(heads: tuple[int, ...], widths: tuple[int, ...], attended: list[bool]) -> dict[str, int]:
    """Heads a level, of which those without attention do not count, as a number or as channels a head."""
    used = [level for level in range(len(widths)) if attended[level] or level == len(widths) - 1]
    if len({heads[level] for level in used}) == 1:
        return {"heads": heads[used[0]], "head_channels": 0}
    sizes = {widths[level] / heads[level] for level in used}
    if len(sizes) != 1:
        raise InvalidInput(f"heads of unlike widths: {heads}", where="unet.config.attention_head_dim")
    return {"heads": 1, "head_channels": int(sizes.pop())}


def _depths(depths: tuple[int, ...], attended: list[bool]) -> tuple[int, ...]:
    """Transformer blocks a level: 0 where there is no attention, save in the last, which the middle has."""
    last = len(depths) - 1
    return tuple(depth if attended[i] or i == last else 0 for i, depth in enumerate(depths))


def _ratio(width: int, channels: int) -> float:
    """width / channels, an int where it is one."""
    return width / channels if width % channels else width // channels
