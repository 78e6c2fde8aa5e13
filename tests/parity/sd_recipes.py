"""Small random pipelines of latent and Stable Diffusion, as diffusers and transformers build them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn

from sfumato.encoders.bpe import BPE

SIDE = 32
"""Of the pictures, in pixels; 16 places of latents."""

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LOW_RES = {"beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02}
"""The x4 upscaler's, of its latents and of the small picture alike."""

KINDS = ("sd1", "sd2", "xl", "inpaint", "depth", "upscaler", "refiner", "xl_inpaint")
_CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "xl": "StableDiffusionXLPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "upscaler": "StableDiffusionUpscalePipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
    "xl_inpaint": "StableDiffusionXLInpaintPipeline",
}
VELOCITY = ("sd2", "upscaler")
"""Kinds that predict velocity."""


def shaken(module: nn.Module, seed: int) -> Any:
    """The module with weights that are nowhere zero or one, so that nothing of it can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def seeded(make: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that makes the same module every time, whatever was drawn before."""

    @functools.wraps(make)
    def made(*args: Any, **settings: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args, **settings)

    return made


@functools.cache
def tokenizer(pad: str) -> Any:
    """transformers' CLIP tokenizer with the published vocabulary."""
    from transformers import CLIPTokenizer

    bpe = BPE()
    merges = [tuple(pair.split(" ")) for pair in bpe.pairs]
    return CLIPTokenizer(vocab=dict(bpe.table), merges=merges, model_max_length=77, pad_token=pad)


@functools.cache
@seeded
def tower(width: int, depth: int, activation: str, projected: bool, seed: int) -> Any:
    """transformers' text tower of heads of 64."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        num_hidden_layers=depth,
        intermediate_size=4 * width,
        hidden_act=activation,
        projection_dim=width,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    return shaken((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


@seeded
def vae(**settings: Any) -> Any:
    return shaken(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            **settings,
        ),
        1,
    )


@seeded
def unet(**settings: Any) -> Any:
    usual: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": SIDE // 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
    }
    return shaken(diffusers.UNet2DConditionModel(**{**usual, **settings}), 2)


_LINEAR = {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "use_linear_projection": True}
_WIDE: dict[str, Any] = {
    **_LINEAR,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": _LINEAR,
    "inpaint": {"in_channels": 9},
    "depth": {**_LINEAR, "in_channels": 5},
    "upscaler": {
        **_LINEAR,
        "in_channels": 7,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "only_cross_attention": (True, False),
        "num_class_embeds": 1000,
        # As wide as no level is: which level attends to text alone is told by that.
        "cross_attention_dim": 192,
    },
    "xl": {**_WIDE, "cross_attention_dim": 192, "projection_class_embeddings_input_dim": 128 + 6 * 256},
    "refiner": {**_WIDE, "cross_attention_dim": 128, "projection_class_embeddings_input_dim": 128 + 5 * 256},
}
_UNETS["xl_inpaint"] = {**_UNETS["xl"], "in_channels": 9}


def scheduler(kind: str) -> Any:
    """The one a kind is published with, or DDIM."""
    if kind in ("xl", "refiner", "xl_inpaint"):
        return diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    return diffusers.DDIMScheduler(
        **(LOW_RES if kind == "upscaler" else SD),
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind in VELOCITY else "epsilon",
    )


def pipeline(kind: str) -> Any:
    """A pipeline of one of KINDS."""
    parts: dict[str, Any] = {"unet": unet(**_UNETS[kind]), "scheduler": scheduler(kind)}
    large = tower(128, 3, "gelu", True, 4)
    if kind in ("xl", "refiner", "xl_inpaint"):
        both = kind != "refiner"
        parts |= {
            "vae": vae(scaling_factor=0.13025),
            "text_encoder": tower(64, 2, "quick_gelu", False, 3) if both else None,
            "tokenizer": tokenizer("<|endoftext|>") if both else None,
            "text_encoder_2": large,
            "tokenizer_2": tokenizer("!"),
            "add_watermarker": False,
            **({} if kind == "xl" else {"requires_aesthetics_score": not both}),
            "force_zeros_for_empty_prompt": both,
        }
        return getattr(diffusers, _CLASSES[kind])(**parts)
    second = kind in ("sd2", "depth", "upscaler")
    width = _UNETS[kind].get("cross_attention_dim", 64)
    parts |= {
        "vae": vae(**({"scaling_factor": 0.08333} if kind == "upscaler" else {})),
        "text_encoder": tower(width, 2, "gelu" if second else "quick_gelu", False, 3),
        "tokenizer": tokenizer("!" if second else "<|endoftext|>"),
    }
    if kind == "depth":
        parts |= {"depth_estimator": None, "feature_extractor": None}
    elif kind == "upscaler":
        parts["low_res_scheduler"] = diffusers.DDPMScheduler(**LOW_RES)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, _CLASSES[kind])(**parts)
