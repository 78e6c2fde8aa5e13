"""Settings of autoencoders and text towers as diffusers and transformers write them, and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.vq import VQ
from sfumato.core.errors import InvalidInput, nearest
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates

_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
}
"""What is done in one way only; all are diffusers' defaults."""

_VAE_READ = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "in_channels",
    "out_channels",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "use_post_quant_conv",
    "use_quant_conv",
)
_VAE_IDLE = ("sample_size", "force_upcast")
"""What changes nothing: numbers are as safe as the autoencoder asks in any case."""

_VQ: dict[str, Any] = {"act_fn": "silu", "norm_type": "group"}
_VQ_OTHERS = ("shift_factor", "use_post_quant_conv", "use_quant_conv")
_VQ_READ = (*(key for key in _VAE_READ if key not in _VQ_OTHERS), "num_vq_embeddings", "vq_embed_dim")
_VQ_IDLE = (*_VAE_IDLE, "lookup_from_codebook")
"""Of codes told by their numbers, which no pipeline here does."""

_TEXT: dict[str, Any] = {"use_causal_mask": True, "is_decoder": False}
_TEXT_READ = (
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "projection_dim",
    "vocab_size",
)
_IMAGE_READ = ("image_size", "patch_size")
_TEXT_IDLE = (
    "add_cross_attention architectures attention_dropout attn_implementation bad_words_ids "
    "begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range "
    "is_encoder_decoder label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups "
    "num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix "
    "problem_type pruned_heads remove_invalid_values repetition_penalty return_dict "
    "return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss "
    "tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript "
    "transformers_version typical_p use_bfloat16"
)
"""What transformers writes of every model, for training it and for making text with it."""


def vae_from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], float, float]:
    """(Description of the autoencoder, scale, shift) of a configuration of AutoencoderKL.

    Raises:
        InvalidInput: it wants what this autoencoder does not do; `where` names the setting.
    """
    refuse_others(config, "vae.config", _VAE, (*_VAE_READ, *_VAE_IDLE))
    try:
        return _vae(config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise InvalidInput(f"no configuration of an autoencoder ({error!r})", where="vae.config") from None


def vq_from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """(Description of the autoencoder, scale) of a configuration of VQModel.

    A configuration that does not tell its scale is of before diffusers told any, when latents were not
    scaled; its later versions take 0.18215, and draw other pictures with such weights than were published.

    Raises:
        InvalidInput: it wants what this autoencoder does not do; `where` names the setting.
    """
    refuse_others(config, "vqvae.config", _VQ, (*_VQ_READ, *_VQ_IDLE))
    try:
        described = _stages(config, "vqvae.config")
        channels = config.get("latent_channels", 3)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise InvalidInput(f"no configuration of an autoencoder ({error!r})", where="vqvae.config") from None
    if config.get("vq_embed_dim") not in (None, channels):
        raise InvalidInput(
            f"codes of {config['vq_embed_dim']} channels for latents of {channels}",
            where="vqvae.config.vq_embed_dim",
        )
    codes = config.get("num_vq_embeddings", 256)
    vq = {"name": "vq", "codes": codes, "channels": channels, **described}
    return vq, config.get("scaling_factor") or 1.0


def vq_to_config(autoencoder: VQ, scale: float) -> dict[str, Any]:
    """The configuration with which diffusers' VQModel is the same."""
    return {
        "_class_name": "VQModel",
        **_stages_to_config(autoencoder),
        "norm_type": "group",
        "num_vq_embeddings": autoencoder.codes,
        "vq_embed_dim": autoencoder.channels,
        "scaling_factor": scale,
    }


def _vae(config: Mapping[str, Any]) -> tuple[dict[str, Any], float, float]:
    described = _stages(config, "vae.config")
    quant = config.get("use_quant_conv", True)
    if quant != config.get("use_post_quant_conv", True):
        raise InvalidInput("one of the two alone", where="vae.config.use_quant_conv")
    latents = config.get("latent_channels", 4)
    kl = {"name": "kl", "channels": latents, **described, "quant_convs": quant}
    return kl, config.get("scaling_factor") or 0.18215, config.get("shift_factor") or 0.0


def _stages(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the configurations of both autoencoders say of the encoder and the decoder."""
    widths = list(config.get("block_out_channels", (64,)))
    levels = range(len(widths))
    downs = config.get("down_block_types", ["DownEncoderBlock2D"])
    ups = config.get("up_block_types", ["UpDecoderBlock2D"])
    kinds = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
    mirrored = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
    if not (set(downs) <= kinds.keys() and set(ups) <= mirrored.keys() and len(downs) == len(widths)):
        raise InvalidInput("blocks of another autoencoder", where=f"{where}.down_block_types")
    attended = [kinds[kind] for kind in downs]
    if attended != [mirrored[kind] for kind in reversed(ups)]:
        raise InvalidInput("attention on one side alone", where=f"{where}.up_block_types")
    groups = config.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise InvalidInput(f"{widths} channels in {groups} groups", where=f"{where}.norm_num_groups")
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise InvalidInput("other channels out than in", where=f"{where}.out_channels")
    width = math.gcd(*widths)
    return {
        "width": width,
        "multipliers": [each // width for each in widths],
        "blocks": config.get("layers_per_block", 1),
        "attention": [2**level for level in levels if attended[level]],
        "mid_attention": config.get("mid_block_add_attention", True),
        "groups": groups,
        "in_channels": config.get("in_channels", 3),
    }


def vae_to_config(autoencoder: KL, scale: float, shift: float) -> dict[str, Any]:
    """The configuration with which diffusers' AutoencoderKL is the same.

    Raises:
        InvalidInput: none is.
    """
    if autoencoder.pack != 1:
        raise InvalidInput("diffusers' AutoencoderKL does not pack latents", where="autoencoder.pack")
    return {
        "_class_name": "AutoencoderKL",
        **_stages_to_config(autoencoder),
        "use_quant_conv": autoencoder.quant_convs,
        "use_post_quant_conv": autoencoder.quant_convs,
        "scaling_factor": scale,
        "shift_factor": shift or None,
    }


def _stages_to_config(autoencoder: KL | VQ) -> dict[str, Any]:
    """The inverse of `_stages`."""
    widths = [autoencoder.width * multiplier for multiplier in autoencoder.multipliers]
    groups = {math.gcd(autoencoder.groups, width) for width in widths}
    if len(groups) != 1:
        raise InvalidInput(f"{widths} channels fall into unlike groups", where="autoencoder.width")
    attended = [2**level in autoencoder.attention for level in range(len(widths))]
    return {
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [f"{'Attn' * each}DownEncoderBlock2D" for each in attended],
        "up_block_types": [f"{'Attn' * each}UpDecoderBlock2D" for each in reversed(attended)],
        "in_channels": autoencoder.in_channels,
        "out_channels": autoencoder.in_channels,
        "latent_channels": autoencoder.channels,
        "layers_per_block": autoencoder.blocks,
        "mid_block_add_attention": autoencoder.mid_attention,
        "norm_num_groups": groups.pop(),
    }


def text_from_config(config: Mapping[str, Any], projected: bool, where: str) -> dict[str, Any]:
    """The description of the text tower that a configuration of CLIPTextModel is of.

    Args:
        config: of transformers.
        projected: it is one of CLIPTextModelWithProjection.
        where: what to call it in errors.

    Raises:
        InvalidInput: it wants what this tower does not do.
    """
    if config.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise InvalidInput(f"a text encoder {config['model_type']!r} is another", where=f"{where}.model_type")
    for key, expected in _TEXT.items():
        if config.get(key, expected) not in (expected, None):
            raise InvalidInput(f"{config[key]!r} is another text encoder", where=f"{where}.{key}")
    refuse_others(config, where, {}, (*_TEXT, *_TEXT_READ, *_TEXT_IDLE.split()))
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise InvalidInput(f"{activation!r} is neither quick_gelu nor gelu", where=f"{where}.hidden_act")
    end = config.get("eos_token_id", 49407)
    return {
        "name": "clip_text",
        "width": config.get("hidden_size", 512),
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 8),
        "hidden": config.get("intermediate_size", 2048),
        "vocabulary": config.get("vocab_size", 49408),
        "length": config.get("max_position_embeddings", 77),
        "activation": activation,
        "projection": config.get("projection_dim", 512) if projected else 0,
        # Files of before 2023 say 2, and mean the place of the highest id.
        "end": -1 if end in (2, None) else end,
        "eps": config.get("layer_norm_eps", 1e-5),
    }


def image_from_config(config: Mapping[str, Any], projected: bool) -> dict[str, Any]:
    """The description of the image tower that a configuration of CLIPVisionModel is of.

    Args:
        config: of transformers.
        projected: it is one of CLIPVisionModelWithProjection.

    Raises:
        InvalidInput: it wants what this tower does not do; `where` names the setting.
    """
    where = "image_encoder"
    refuse_others(config, where, {"num_channels": 3}, (*_TEXT_READ, *_TEXT_IDLE.split(), *_IMAGE_READ))
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise InvalidInput(f"{activation!r} is neither quick_gelu nor gelu", where=f"{where}.hidden_act")
    return {
        "name": "clip_image",
        "size": config.get("image_size", 224),
        "patch": config.get("patch_size", 32),
        "width": config.get("hidden_size", 768),
        "depth": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", 12),
        "hidden": config.get("intermediate_size", 3072),
        "activation": activation,
        "projection": config.get("projection_dim", 512) if projected else 0,
        "eps": config.get("layer_norm_eps", 1e-5),
    }


def text_to_config(states: PromptStates) -> dict[str, Any]:
    """The configuration with which transformers' CLIPTextModel is the same tower."""
    tower: ClipText = states.text
    tokenizer = states.tokenizer
    return {
        "architectures": ["CLIPTextModelWithProjection" if tower.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden or 4 * tower.width,
        "vocab_size": tower.vocabulary,
        "max_position_embeddings": tower.length,
        "hidden_act": tower.activation,
        "projection_dim": tower.projection or tower.width,
        "layer_norm_eps": tower.eps,
        "bos_token_id": tokenizer.start,
        "eos_token_id": 2 if tower.end < 0 else tower.end,
        "pad_token_id": tokenizer.end if states.pad is None else states.pad,
        "torch_dtype": str(next(tower.parameters()).dtype).removeprefix("torch."),
    }


def refuse_others(
    config: Mapping[str, Any], where: str, expected: Mapping[str, Any], known: Collection[str]
) -> None:
    """Refuse settings by name that say what is done in another way, or that nobody here knows.

    Those that begin with _ tell where a file comes from, and those that are null, false or 0 ask for nothing.

    Raises:
        InvalidInput: one of these.
    """
    for key, value in config.items():
        if key in expected:
            if value != expected[key]:
                raise InvalidInput(f"{value!r} is not done here", where=f"{where}.{key}")
        elif key not in known and not key.startswith("_") and value not in (None, False, 0):
            raise InvalidInput(
                f"a setting that is not known ({str(value)[:40]!r})",
                where=f"{where}.{key}",
                do=nearest(key, {*known, *expected}),
            )
