"""Small random models of latent diffusion's first kinds, as diffusers builds them, and their single files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.deprecated.latent_diffusion_uncond import LDMPipeline
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from sd_recipes import seeded, shaken, unet
from torch import Tensor

from sfumato.checkpoints import sd_unet_keys, vae_keys
from sfumato.encoders.word_piece import WordPiece

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
WORDS = WordPiece.of(["a red apple left of a cat", "two cats on a sofa"])
SIDE = 64
_FOUR: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
}


def ddim() -> Any:
    return diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")


@seeded
def captions(folder: Path) -> Any:
    """LDMTextToImagePipeline; its latents are always of an eighth."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join((*WORDS.vocabulary, "[MASK]")) + "\n", "utf-8")
    config = LDMBertConfig(
        vocab_size=len(WORDS.vocabulary) + 1,
        encoder_layers=2,
        encoder_ffn_dim=96,
        d_model=24,
        encoder_attention_heads=8,
        head_dim=4,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=shaken(diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **_FOUR), 1),
        bert=shaken(LDMBertModel(config), 5),
        tokenizer=BertTokenizer.from_pretrained(folder),
        unet=unet(cross_attention_dim=24, sample_size=SIDE // 8),
        scheduler=ddim(),
    )


@seeded
def vq() -> Any:
    """A VQ first stage of a half, whose codes are far apart, so that none is chosen by rounding."""
    stage = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        layers_per_block=1,
        scaling_factor=1.0,
    )
    shaken(stage, 6)
    stage.quantize.embedding.weight *= 20
    return stage


@seeded
def faces() -> Any:
    """LDMPipeline: nothing is said."""
    network = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
    )
    return LDMPipeline(vq(), shaken(network, 2), ddim())


def bert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of diffusers' port of the text encoder → those of latent diffusion."""
    inside = {
        "self_attn_layer_norm": "0.0",
        "self_attn.q_proj": "0.1.to_q",
        "self_attn.k_proj": "0.1.to_k",
        "self_attn.v_proj": "0.1.to_v",
        "self_attn.out_proj": "0.1.to_out",
        "final_layer_norm": "1.0",
        "fc1": "1.1.net.0.0",
        "fc2": "1.1.net.2",
    }
    outside = {"embed_tokens": "token_emb", "embed_positions": "pos_emb.emb", "layer_norm": "norm"}
    found = {}
    for name, tensor in theirs.items():
        *module, kind = name.removeprefix("model.").split(".")
        if module[0] == "layers":
            half, _, place = inside[".".join(module[2:])].partition(".")
            module = ["attn_layers", "layers", str(2 * int(module[1]) + int(half)), place]
        found[".".join((*(outside.get(part, part) for part in module), kind))] = tensor
    return found


def plain_unet(theirs: dict[str, Tensor], head: int) -> dict[str, Tensor]:
    """UNet2DModel's weights under the names of openaimodel.py, q, k and v of each head after one another."""
    names = {"group_norm": "norm", "to_out.0": "proj_out"}
    blocks = sd_unet_keys.blocks_of(theirs)
    attended = {int(n.split(".")[1]) for n in theirs if n.startswith("up_blocks.") and ".attentions." in n}
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if ".attentions." not in name:
            found[sd_unet_keys.to_compvis(name, blocks, attended)] = tensor
            continue
        block, _, rest = name.partition(".attentions.")
        number, module = rest.split(".", 1)
        module, _, kind = module.rpartition(".")
        start = sd_unet_keys.to_compvis(f"{block}.attentions.{number}.x", blocks, attended)[:-2]
        if module == "to_q":
            q, k, v = (theirs[name.replace("to_q", f"to_{each}")] for each in "qkv")
            heads = [each.unflatten(0, (-1, head)) for each in (q, k, v)]
            whole = torch.stack(heads, 1).flatten(0, 2)
            found[f"{start}.qkv.{kind}"] = whole[..., None] if kind == "weight" else whole
        elif module in names:
            flat = module == "to_out.0" and kind == "weight"
            found[f"{start}.{names[module]}.{kind}"] = tensor[..., None] if flat else tensor
    return found


def one_file(network: dict[str, Tensor], autoencoder: Any, told: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as latent diffusion's training leaves it: names, betas, and what nobody reads."""
    betas = ddim().betas
    return {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in network.items()},
        **{
            f"first_stage_model.{name}": tensor
            for name, tensor in vae_keys.from_diffusers(autoencoder.state_dict()).items()
        },
        **{f"cond_stage_model.{name}": tensor for name, tensor in told.items()},
        "betas": betas,
        "alphas_cumprod": torch.cumprod(1 - betas, 0),
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
    }
