"""Small random U-Nets and pipelines that are told nothing, as diffusers builds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from ldm_recipes import vq
from sd_recipes import seeded, shaken

_FIRST = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "downsample_padding": 0}
_RESIDUAL = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "layers_per_block": 2,
}
UNETS: dict[str, dict[str, Any]] = {
    "ddpm": {**_FIRST, **DDPM, "attention_head_dim": None},
    "later": {**_FIRST, "attention_head_dim": 8},
    "residual": {**_FIRST, **_RESIDUAL, "attention_head_dim": 16},
    "classes": {**_FIRST, "num_class_embeds": 3},
    "two": {**_FIRST, "in_channels": 4, "out_channels": 8, "sample_size": (16, 8), "dropout": 0.1},
}
"""DDPM's own; as diffusers trains them; resampled by residual blocks; of classes; with a variance."""

LATER = (
    "add_attention",
    "attn_norm_num_groups",
    "class_embed_type",
    "downsample_type",
    "dropout",
    "mid_block_type",
    "num_class_embeds",
    "num_train_timesteps",
    "resnet_time_scale_shift",
    "time_embedding_dim",
    "upsample_type",
)
"""Settings that diffusers 0.1 did not have."""


@seeded
def network(kind: str, **more: Any) -> Any:
    return shaken(diffusers.UNet2DModel(**{**UNETS[kind], **more}), 2)


def pixels(kind: str, scheduler: Any, unet: Any = None) -> Any:
    """DDPMPipeline or DDIMPipeline."""
    pipe = getattr(diffusers, kind)(unet or network("ddpm"), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def aged(pipe: Any, folder: Path) -> None:
    """Save as diffusers 0.1 did: one folder, attention's old names, and no settings but those of its time."""
    pipe.save_pretrained(folder / "new")
    settings = json.loads((folder / "new" / "unet" / "config.json").read_text())
    for key in LATER:
        settings.pop(key, None)
    old = folder / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps({**settings, "_diffusers_version": "0.0.4"}))
    walked = json.loads((folder / "new" / "scheduler" / "scheduler_config.json").read_text())
    kept = "_class_name beta_end beta_schedule beta_start clip_sample num_train_timesteps variance_type"
    told = {key: walked[key] for key in kept.split()}
    (old / "scheduler_config.json").write_text(json.dumps({**told, "trained_betas": None}))
    index = json.loads((folder / "new" / "model_index.json").read_text())
    (old / "model_index.json").write_text(json.dumps({**index, "_diffusers_version": "0.1.1"}))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    held = {}
    for name, tensor in pipe.unet.state_dict().items():
        for new, was in names.items():
            name = name.replace(f".{new}.", f".{was}.")
        held[name] = tensor
    torch.save(held, old / "diffusion_pytorch_model.bin")


@seeded
def kl() -> Any:
    """An autoencoder of posteriors, where LDMPipeline asks for one of codes."""
    return shaken(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            scaling_factor=0.5,
        ),
        7,
    )


def latents(autoencoder: Any = None, scheduler: Any = None) -> Any:
    """LDMPipeline."""
    from diffusers.pipelines.deprecated.latent_diffusion_uncond import LDMPipeline
    from ldm_recipes import ddim

    pipe = LDMPipeline(autoencoder or vq(), network("later"), scheduler or ddim())
    pipe.set_progress_bar_config(disable=True)
    return pipe
