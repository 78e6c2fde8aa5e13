"""Small random pipelines of Stable Diffusion, as diffusers and transformers build them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from sfumato.encoders.bpe import BPE

SIDE = 32
"""Of the pictures, in pixels; 16 places of latents."""

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def shaken(module: nn.Module, seed: int) -> Any:
    """The module with weights that are nowhere zero or one, so that nothing of it can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def tokenizer(folder: Path, pad: str) -> Any:
    """transformers' CLIP tokenizer with the published vocabulary."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    bpe = BPE()
    (folder / "vocab.json").write_text(json.dumps(bpe.table), "utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *bpe.pairs)) + "\n", "utf-8")
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=77)


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


def pipeline(kind: str, folder: Path) -> Any:
    """A pipeline of a kind: sd1, sd2 (velocity), xl or inpaint."""
    if kind == "xl":
        return diffusers.StableDiffusionXLPipeline(
            vae=vae(scaling_factor=0.13025),
            text_encoder=tower(64, 2, "quick_gelu", False, 3),
            text_encoder_2=tower(128, 3, "gelu", True, 4),
            tokenizer=tokenizer(folder / "one", "<|endoftext|>"),
            tokenizer_2=tokenizer(folder / "two", "!"),
            unet=unet(
                **_LINEAR,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                cross_attention_dim=192,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=128 + 6 * 256,
            ),
            scheduler=diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1),
            add_watermarker=False,
        )
    second = kind == "sd2"
    scheduler = diffusers.DDIMScheduler(
        **SD,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if second else "epsilon",
    )
    parts = {
        "vae": vae(),
        "text_encoder": tower(64, 2, "gelu" if second else "quick_gelu", False, 3),
        "tokenizer": tokenizer(folder / "one", "!" if second else "<|endoftext|>"),
        "unet": unet(**(_LINEAR if second else {}), **({"in_channels": 9} if kind == "inpaint" else {})),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    name = "StableDiffusionInpaintPipeline" if kind == "inpaint" else "StableDiffusionPipeline"
    return getattr(diffusers, name)(**parts)
