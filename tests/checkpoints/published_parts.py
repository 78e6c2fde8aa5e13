"""What the published folders and files of latent and Stable Diffusion hold: settings, names and shapes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

Shapes = dict[str, tuple[int, ...]]

_BLOCKS = {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]} | {
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
}
_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "downsample_padding": 1,
    **_BLOCKS,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
}
_SECOND = {
    **_UNET,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "use_linear_projection": True,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": True,
}
_XL = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
_H = {
    **_L,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_G = {
    **_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
_DDIM = {**_PNDM, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
_EULER = {
    **_PNDM,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_UPSCALED = {"beta_start": 0.0001, "beta_end": 0.02}
_XL_VAE = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}

FOLDERS: dict[str, dict[str, Any]] = {
    "sd1": {
        "pipeline": "StableDiffusionPipeline",
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": _L,
        "scheduler": _PNDM,
        "old": True,
    },
    "sd1_inpaint": {
        "pipeline": "StableDiffusionInpaintPipeline",
        "unet": {**_UNET, "in_channels": 9},
        "vae": _VAE,
        "text_encoder": _L,
        "scheduler": _PNDM,
        "old": True,
    },
    "sd2": {
        "pipeline": "StableDiffusionPipeline",
        "unet": {**_SECOND, "sample_size": 96},
        "vae": {**_VAE, "sample_size": 768},
        "text_encoder": _H,
        "scheduler": _DDIM,
    },
    "sd2_inpaint": {
        "pipeline": "StableDiffusionInpaintPipeline",
        "unet": {**_SECOND, "in_channels": 9},
        "vae": _VAE,
        "text_encoder": _H,
        "scheduler": {**_PNDM, "prediction_type": "epsilon"},
    },
    "sd2_depth": {
        "pipeline": "StableDiffusionDepth2ImgPipeline",
        "unet": {**_SECOND, "in_channels": 5},
        "vae": _VAE,
        "text_encoder": _H,
        "scheduler": _PNDM,
    },
    "x4_upscaler": {
        "pipeline": "StableDiffusionUpscalePipeline",
        "unet": {
            **_SECOND,
            "attention_head_dim": 8,
            "block_out_channels": [256, 512, 512, 1024],
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
            "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
            "in_channels": 7,
            "num_class_embeds": 1000,
            "only_cross_attention": [True, True, True, False],
            "sample_size": 128,
        },
        "vae": {
            **_VAE,
            "block_out_channels": [128, 256, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "scaling_factor": 0.08333,
        },
        "text_encoder": _H,
        "scheduler": {**_DDIM, **_UPSCALED},
        "low_res_scheduler": {**_DDIM, **_UPSCALED, "_class_name": "DDPMScheduler"},
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": _XL,
        "vae": _XL_VAE,
        "text_encoder": _L,
        "text_encoder_2": _G,
        "scheduler": _EULER,
        "force_zeros_for_empty_prompt": True,
    },
    "sdxl_refiner": {
        "pipeline": "StableDiffusionXLImg2ImgPipeline",
        "unet": {
            **_XL,
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
            "projection_class_embeddings_input_dim": 2560,
            "transformer_layers_per_block": 4,
        },
        "vae": _XL_VAE,
        "text_encoder_2": _G,
        "scheduler": _EULER,
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
    },
}
"""Settings of the published folders, as they stand there, by the names of the U-Nets."""

PARAMETERS = {
    "sd1": 859_520_964,
    "sd1_inpaint": 859_535_364,
    "sd2": 865_910_724,
    "sd2_inpaint": 865_925_124,
    "sd2_depth": 865_913_604,
    "sdxl": 2_567_463_684,
    "sdxl_refiner": 2_259_526_660,
    "ldm_text": 872_300_484,
    "ldm_class": 400_920_579,
    "faces": 274_056_163,
    "churches": 294_966_916,
    "inpainting": 387_245_827,
}
"""Of the U-Nets, as published."""

TOWERS = {768: 123_060_480, 1024: 340_387_840, 1280: 694_659_840}
"""Parameters of the text towers by their width; of 1024 in folders, without the last layer."""


def shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def openclip(width: int, depth: int) -> Shapes:
    """A text tower as OpenCLIP's files name it."""
    found: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for number in range(depth):
        block = f"transformer.resblocks.{number}"
        found |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        }
        for norm in ("ln_1", "ln_2"):
            found |= {f"{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return found


def write_hollow(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of half precision with a hole where its numbers would be: no room on the disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(told).to_bytes(8, "little") + told)
    os.truncate(file, 8 + len(told) + offset)


def write_folder(name: str, root: Path) -> dict[str, Shapes]:
    """A folder of FOLDERS with hollow weights, named and shaped by diffusers and transformers."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from sfumato.encoders.bpe import BPE

    held = FOLDERS[name]
    index: dict[str, Any] = {"_class_name": held["pipeline"], "_diffusers_version": "0.19.0.dev0"}
    index |= {key: held[key] for key in held if key.startswith(("force", "requires"))}
    bpe, parts = BPE(), {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if part not in held:
            if part.startswith("text"):
                index[part] = index[part.replace("text_encoder", "tokenizer")] = [None, None]
            continue
        config = held[part]
        with torch.device("meta"):
            if part.startswith("text"):
                kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
                kind = config["architectures"][0]
                shapes = shapes_of(kinds[kind](CLIPTextConfig(**config)))
            else:
                kind = config["_class_name"]
                shapes = shapes_of(getattr(diffusers, kind).from_config(config))
        if part.startswith("text"):
            shapes = {n if n.startswith("text_") else f"text_model.{n}": s for n, s in shapes.items()}
            if held.get("old"):
                shapes["text_model.embeddings.position_ids"] = (1, 77)
            folder = root / part.replace("text_encoder", "tokenizer")
            folder.mkdir(parents=True)
            (folder / "vocab.json").write_text(json.dumps(bpe.table), "utf-8")
            (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *bpe.pairs)) + "\n", "utf-8")
            index[folder.name] = ["transformers", "CLIPTokenizer"]
        elif part == "vae" and held.get("old"):
            names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for new, old in names.items():
                shapes = {n.replace(f".{new}.", f".{old}."): s for n, s in shapes.items()}
        file = "model" if part.startswith("text") else "diffusion_pytorch_model"
        write_hollow(root / part / f"{file}.safetensors", shapes)
        (root / part / "config.json").write_text(json.dumps(config))
        index[part] = ["transformers" if part.startswith("text") else "diffusers", kind]
        parts[part] = shapes
    for part in ("scheduler", "low_res_scheduler"):
        if part in held:
            (root / part).mkdir()
            (root / part / "scheduler_config.json").write_text(json.dumps(held[part]))
            index[part] = ["diffusers", held[part]["_class_name"]]
    (root / "model_index.json").write_text(json.dumps(index))
    return parts
