"""Published folders and files at full size, without their numbers: found to be what they are, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_parts import (
    FOLDERS,
    PARAMETERS,
    TOWERS,
    Shapes,
    openclip,
    shapes_of,
    write_folder,
    write_hollow,
)

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints import compvis, diffusers, latent_diffusion, scheduler_config
from sfumato.checkpoints.assembly import Assembly
from sfumato.checkpoints.diffusers_config import text_from_config, vae_from_config
from sfumato.checkpoints.load import format_of
from sfumato.checkpoints.scheduler_config import model_from_config
from sfumato.checkpoints.sd_unet_config import from_config
from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import SPECIAL
from sfumato.networks.adm import ADM
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.betas import Betas
from sfumato.registry import build

KINDS = {
    "sd1": ("Stable Diffusion", ["text_clip"]),
    "sd1_inpaint": ("Stable Diffusion, inpainting", ["text_clip", "masked_image"]),
    "sd2": ("Stable Diffusion", ["text_clip"]),
    "sd2_inpaint": ("Stable Diffusion, inpainting", ["text_clip", "masked_image"]),
    "sd2_depth": ("Stable Diffusion 2, depth", ["text_clip", "depth"]),
    "x4_upscaler": ("Stable Diffusion's x4 upscaler", ["text_clip", "noisy_low_res"]),
    "sdxl": ("Stable Diffusion XL", ["text_clip", "sizes"]),
    "sdxl_refiner": ("Stable Diffusion XL", ["text_clip", "sizes"]),
}
VELOCITY = ("sd2", "x4_upscaler")


def hollow(build_it: Any) -> Any:
    with torch.device("meta"):
        return build_it()


def count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def told(network: Any) -> dict[str, Any]:
    return {key: getattr(network, key) for key in type(network).__dataclass_fields__}


def check(report: Assembly, name: str, wanted: list[str]) -> None:
    """Every weight fits one of ours and none is left; the network is the published one."""
    keys = report.keys()
    assert keys.exact, str(keys)
    network = hollow(lambda: build("network", report.description["network"]))
    published = hollow(lambda: SDUNet.published(name))
    assert told(network) == told(published)
    conditioner = report.description["conditioner"]
    parts = conditioner.get("parts", [conditioner])
    assert [part["name"] for part in parts] == wanted
    ends = (0.0001, 0.02) if name == "x4_upscaler" else (0.00085, 0.012)
    assert build("process", report.description["process"]) == Betas("scaled_linear", 1000, *ends)
    assert report.description["prediction"] == ("velocity" if name in VELOCITY else "noise")
    scale = {"sdxl": 0.13025, "sdxl_refiner": 0.13025, "x4_upscaler": 0.08333}.get(name, 0.18215)
    assert report.description["space"]["scale"] == scale
    if name == "x4_upscaler":
        noised = hollow(lambda: build("conditioner", parts[1]))
        assert (noised.process, noised.most) == (Betas("scaled_linear", 1000, *ends), 350)
        assert noised.level == 20
    if wanted[-1] == "sizes":
        assert parts[1].get("scored", False) == (name == "sdxl_refiner")
        assert parts[0]["zeros_for_empty"] == (name == "sdxl")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_folder(name: str, tmp_path: Path) -> None:
    parts = write_folder(name, tmp_path)
    report = diffusers.report(tmp_path)
    assert report.what == KINDS[name][0]
    check(report, name, KINDS[name][1])
    read = {piece.name: piece.shapes for piece in report.pieces}
    assert count(read["unet"]) == count(parts["unet"]) == PARAMETERS.get(name, count(parts["unet"]))
    assert len(read["unet"]) == {"sdxl": 1680, "sdxl_refiner": 1220, "x4_upscaler": 687}.get(name, 686)
    if name != "x4_upscaler":
        assert len(read["vae"]) == 248
        assert count(read["vae"]) == 83_653_863
    for part in ("text_encoder", "text_encoder_2"):
        if part in parts:
            width = FOLDERS[name][part]["hidden_size"]
            assert count(read[part]) == TOWERS[width]
            # The places' numbers, which the first folders hold too, follow from the settings.
            assert len(parts[part]) - len(read[part]) == bool(FOLDERS[name].get("old"))
    if name == "sd1":
        assert len(parts["text_encoder"]) == 197


def single(name: str) -> Shapes:
    """All names of a published single file, with what training leaves there."""
    unet = shapes_of(hollow(lambda: SDUNet.published(name)))
    f4 = {"channels": 4, "multipliers": (1, 2, 4)}
    vae = shapes_of(hollow(lambda: KL(**f4) if name == "x4_upscaler" else KL.published("f8")))
    clip = {"text_model.embeddings.position_ids": (1, 77)}
    clip |= shapes_of(hollow(lambda: ClipText.published("clip_l14")))
    whole: Shapes = {f"model.diffusion_model.{n}": s for n, s in unet.items()}
    whole |= {f"first_stage_model.{n}": s for n, s in vae.items()}
    if name.startswith("sd1"):
        texts = {"cond_stage_model.transformer.": clip}
    elif name == "sdxl":
        texts = {"conditioner.embedders.0.transformer.": clip}
        texts["conditioner.embedders.1.model."] = openclip(1280, 32)
    elif name == "sdxl_refiner":
        texts = {"conditioner.embedders.0.model.": openclip(1280, 32)}
    else:
        texts = {"cond_stage_model.model.": {**openclip(1024, 24), "attn_mask": (77, 77)}}
    whole |= {prefix + n: s for prefix, shapes in texts.items() for n, s in shapes.items()}
    if name.startswith("sdxl"):
        return {**whole, "denoiser.sigmas": (1000,)}
    tables = ("alphas_cumprod", "alphas_cumprod_prev", "sqrt_recip_alphas_cumprod", "posterior_variance")
    return {**whole, **dict.fromkeys(tables, (1000,)), "model_ema.decay": (), "model_ema.num_updates": ()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    shapes = single(name)
    write_hollow(file, shapes)
    assert format_of(file) == "compvis"
    if name == "sd2":
        with pytest.raises(InvalidInput, match="velocity"):
            compvis.report(file)
    report = compvis.report(file, prediction="velocity" if name == "sd2" else None)
    check(report, name, KINDS[name][1])
    version = "xl refiner" if name.endswith("refiner") else "xl" if name == "sdxl" else name[2]
    assert report.what == f"stable diffusion {2 if name == 'x4_upscaler' else version}, one file"
    assert count(report.pieces[0].shapes) == PARAMETERS.get(name, count(report.pieces[0].shapes))
    if name != "sd1":
        return
    # One name more is one too many, one less one too few.
    odd = "model.diffusion_model.output_blocks.3.0.odd.weight"
    write_hollow(file, {**shapes, odd: (3,)})
    more = compvis.report(file, prediction="noise").keys()
    assert [name.removeprefix("network.") for name in more.unexpected] == [odd.split("model.", 2)[2]]
    lost = "model.diffusion_model.output_blocks.3.0.in_layers.0.bias"
    write_hollow(file, {n: s for n, s in shapes.items() if n != lost})
    assert compvis.report(file, prediction="noise").keys().missing == (
        "network.output_blocks.3.0.in_layers.0.bias",
    )


_UNCONDITIONAL: dict[str, dict[str, Any]] = {
    "faces": {
        "channels": 224,
        "multipliers": (1, 2, 3, 4),
        "attention": (2, 4, 8),
        "head_channels": 32,
    },
    "churches": {
        "in_channels": 4,
        "out_channels": 4,
        "channels": 192,
        "multipliers": (1, 2, 2, 4, 4),
        "attention": (1, 2, 4, 8),
        "heads": 8,
        "scale_shift": True,
        "resblock_updown": True,
    },
    "inpainting": {
        "in_channels": 7,
        "channels": 256,
        "multipliers": (1, 2, 3, 4),
        "attention": (2, 4, 8),
        "heads": 8,
        "resblock_updown": True,
    },
}
FIRST = {
    "ldm_text": (lambda: KL.published("f8"), "text_small", "captions", 0.012),
    "ldm_class": (lambda: VQ.published("f4"), "class_token", "classes", 0.0195),
    "faces": (lambda: VQ.published("f4"), "nothing", "faces and bedrooms", 0.0195),
    "churches": (lambda: KL.published("f8"), "nothing", "churches", 0.0155),
    "inpainting": (lambda: VQ.published("f4_noattn"), "masked_image", "inpainting", 0.0205),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_file_of_latent_diffusions_first_models(name: str, tmp_path: Path) -> None:
    stage, conditioner, kind, end = FIRST[name]
    plain = _UNCONDITIONAL.get(name)
    network = hollow(lambda: ADM(**plain) if plain else SDUNet.published(name))
    shapes = {f"model.diffusion_model.{n}": s for n, s in shapes_of(network).items()}
    assert count(shapes) == PARAMETERS[name]
    shapes |= {f"first_stage_model.{n}": s for n, s in shapes_of(hollow(stage)).items()}
    said: dict[str, Any] = {}
    if name == "ldm_text":
        text = shapes_of(hollow(lambda: TextSmall.published(name)))
        assert count(text) == 581_994_042
        shapes |= {f"cond_stage_model.transformer.{n}": s for n, s in text.items()}
        words = [*SPECIAL, *(f"w{number}" for number in range(30522 - len(SPECIAL)))]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
        said["vocabulary"] = tmp_path
    elif name == "ldm_class":
        shapes["cond_stage_model.embedding.weight"] = (1001, 512)
    shapes |= {"logvar": (1000,), "model_ema.decay": (), "first_stage_model.loss.logvar": ()}
    file = tmp_path / "model.safetensors"
    write_hollow(file, shapes)
    assert format_of(file) == "latent_diffusion"
    report = latent_diffusion.report(file, **said)
    assert report.what == f"latent diffusion, {kind}, one file"
    assert report.keys().exact, str(report.keys())
    assert report.description["conditioner"]["name"] == conditioner
    process = build("process", report.description["process"])
    assert (process.start, process.end) == (0.00085 if name == "ldm_text" else 0.0015, end)
    assert told(hollow(lambda: build("network", report.description["network"]))) == told(network)
    if name == "ldm_class":
        assert report.description["conditioner"]["null_row"]
        assert len(report.description["conditioner"]["labels"]["label"]) == 1000


@pytest.mark.parametrize(
    ("file", "key", "value", "named"),
    [
        ("unet/config.json", "cross_attention_dimm", 768, "cross_attention_dim"),
        ("unet/config.json", "time_cond_proj_dim", 256, "time_cond_proj_dim"),
        ("vae/config.json", "scalng_factor", 0.5, "scaling_factor"),
        ("text_encoder/config.json", "hidden_act", "relu", "hidden_act"),
        ("text_encoder/config.json", "hiden_size", 512, "hidden_size"),
        ("scheduler/scheduler_config.json", "_class_name", "DDIMSchedular", "DDIM"),
        ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler", "FlowMatch"),
        ("scheduler/scheduler_config.json", "beta_sart", 0.1, "beta_start"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction", "prediction_type"),
        ("model_index.json", "_class_name", "StableDifusionPipeline", "StableDiffusionPipeline"),
        ("model_index.json", "unet", ["diffusers", "UNet3DModel"], "UNet2DConditionModel"),
        ("model_index.json", "image_projector", ["diffusers", "Projector"], "image_projector"),
    ],
)
def test_what_a_folder_says_and_nobody_knows_is_named(
    file: str, key: str, value: Any, named: str, small_folder: Path
) -> None:
    """Newer settings, or misspelt ones, are never passed over: each might change every picture."""
    path = small_folder / file
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), key: value}))
    try:
        with pytest.raises(InvalidInput, match=named):
            diffusers.report(small_folder)
    finally:
        path.write_text(before)
    diffusers.report(small_folder)


def test_all_that_diffusers_writes_is_known() -> None:
    """Every setting of the classes that are read; newer ones that ask for nothing are let pass as well."""
    import diffusers as theirs
    from transformers import CLIPTextConfig

    for name in scheduler_config._SAMPLERS:
        config = dict(getattr(theirs, f"{name}Scheduler")().config)
        model_from_config({**config, "_class_name": f"{name}Scheduler"})
    assert model_from_config({"_class_name": "DDPMScheduler", "predict_epsilon": False})[1] == "data"
    with torch.device("meta"):
        from_config(dict(theirs.UNet2DConditionModel(block_out_channels=(32, 32, 32, 32)).config))
        vae_from_config(dict(theirs.AutoencoderKL().config))
    text_from_config(CLIPTextConfig().to_dict(), False, "text")
    newer = {"_class_name": "DDIMScheduler", "a_newer_setting": None, "another": False}
    assert model_from_config(newer)[1] == "noise"


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder") / "sd1"
    write_folder("sd1", root)
    return root
