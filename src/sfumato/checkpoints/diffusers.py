"""Folders of diffusers: Stable Diffusion 1, 2 and XL, latent diffusion and DDPM, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints import (
    clip_keys,
    controlnet,
    controlnet_keys,
    gligen_keys,
    ldm_folder,
    sd_unet_config,
    sd_unet_keys,
    unconditional_folder,
    vae_keys,
)
from sfumato.checkpoints.assembly import Assembly, Convert, lenient, under
from sfumato.checkpoints.controlled import describe_controlled, separated
from sfumato.checkpoints.diffusers_config import (
    refuse_others,
    text_from_config,
    text_to_config,
    vae_from_config,
    vae_to_config,
)
from sfumato.checkpoints.diffusers_files import licence_of, piece_of, read_json, write_json, write_part
from sfumato.checkpoints.gligen_keys import describe_grounded
from sfumato.checkpoints.inside import refuse_strays, sensible
from sfumato.checkpoints.scheduler_config import model_from_config, to_config, walk_from_config
from sfumato.checkpoints.stable import Parts, describe_model, layer_of, tower_prefix
from sfumato.checkpoints.translation import to_theirs
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.alone import Guide
from sfumato.core.atomic import write_text
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, nearest
from sfumato.encoders.bpe import BPE, END, START
from sfumato.encoders.prompt_states import PromptStates
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.registry import describe

PIPELINES: dict[str, str] = {
    **unconditional_folder.PIPELINES,
    ldm_folder.PIPELINE: "latent diffusion, captions",
    "StableDiffusionPipeline": "Stable Diffusion",
    "StableDiffusionImg2ImgPipeline": "Stable Diffusion",
    "StableDiffusionInpaintPipeline": "Stable Diffusion, inpainting",
    "StableDiffusionInpaintPipelineLegacy": "Stable Diffusion",
    "StableDiffusionDepth2ImgPipeline": "Stable Diffusion 2, depth",
    "StableDiffusionUpscalePipeline": "Stable Diffusion's x4 upscaler",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusionXLImg2ImgPipeline": "Stable Diffusion XL",
    "StableDiffusionXLInpaintPipeline": "Stable Diffusion XL, inpainting",
    "StableDiffusionControlNetPipeline": "Stable Diffusion, with controls",
    "StableDiffusionControlNetImg2ImgPipeline": "Stable Diffusion, with controls",
    "StableDiffusionControlNetInpaintPipeline": "Stable Diffusion, with controls",
    "StableDiffusionGLIGENPipeline": "Stable Diffusion, told boxes (GLIGEN)",
    "StableDiffusionXLControlNetPipeline": "Stable Diffusion XL, with controls",
    "StableDiffusionXLControlNetImg2ImgPipeline": "Stable Diffusion XL, with controls",
    "StableDiffusionXLControlNetInpaintPipeline": "Stable Diffusion XL, with controls",
}
"""The pipelines that are read, in words."""

_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder", "depth_estimator", "watermarker")
"""Parts that make no picture, or that nobody is told of here."""

_SAID = (
    "_class_name",
    "add_watermarker",
    "controlnet",
    "force_zeros_for_empty_prompt",
    "max_noise_level",
    "requires_aesthetics_score",
    "requires_safety_checker",
    "tokenizer",
    "tokenizer_2",
)
_PARTS = ("unet", "vae", "scheduler", "low_res_scheduler", "text_encoder", "text_encoder_2")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
}
_CONTROLS = ("ControlNetModel", "MultiControlNetModel")
_VERSION = "0.30.0"
"""Of diffusers, whose settings are written."""
_TOKENIZERS = {"tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}


def matches(path: Path) -> bool:
    """Whether this is a folder of a whole pipeline, or its model_index.json."""
    try:
        return _root(path).joinpath("model_index.json").is_file()
    except (OSError, ValueError):
        return False


def read(path: str | Path, *, strict: bool = True, variant: str = "") -> Model:
    """The model of a folder, on the CPU.

    Args:
        path: the folder or its model_index.json.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        variant: which of several files a part has is read, such as fp16; the plain one if not said, or the
            only one there is.

    Raises:
        NotFound: a part's files are missing.
        InvalidInput: another pipeline or part, or a setting that is not done here, by name.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, variant=variant).read(strict)


@sensible
def report(path: str | Path, variant: str = "") -> Assembly:
    """What a folder is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    root = _root(Path(path))
    refuse_strays(root)
    index = read_json(root / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise InvalidInput(
            f"a pipeline {kind!r} is not known", where=str(root), do=nearest(str(kind), PIPELINES)
        )
    if kind == ldm_folder.PIPELINE:
        return ldm_folder.report(root, index, variant)
    if kind in unconditional_folder.PIPELINES:
        return unconditional_folder.report(root, index, variant)
    said = {name: value for name, value in index.items() if value != [None, None]}
    refuse_others(said, "model_index.json", {}, (*_PARTS, *_SAID, *_LEFT_OUT))
    here = [name for name in _PARTS if _is_there(index, name)]
    for name in ("unet", "vae", "scheduler"):
        if name not in here:
            raise InvalidInput(f"the pipeline has no {name}", where=str(root / "model_index.json"))
    configs = {
        name: read_json(root / name / f"{'scheduler_' * ('scheduler' in name)}config.json") for name in here
    }
    gated = configs["unet"].get("attention_type") == "gated"
    if gated:
        configs["unet"] = {**configs["unet"], "attention_type": "default"}
    network = sd_unet_config.from_config(configs["unet"])
    autoencoder, scale, shift = vae_from_config(configs["vae"])
    process, prediction = model_from_config(configs["scheduler"])
    texts = [name for name in here if name.startswith("text_encoder")]
    towers = [_tower(root, index, name, configs[name], network["vector"]) for name in texts]
    if not towers:
        raise InvalidInput("the pipeline has no text encoder", where=str(root / "model_index.json"))
    low_res = None
    if "low_res_scheduler" in here:
        noised, _ = model_from_config(configs["low_res_scheduler"])
        most = index.get("max_noise_level", 350)
        low_res = {"process": noised, "most": most, "level": min(20, most)}
    card = _card(root, configs, autoencoder, network)
    description = describe_model(
        network,
        autoencoder,
        scale,
        shift,
        towers,
        process,
        prediction,
        zeros=bool(network["vector"]) and index.get("force_zeros_for_empty_prompt", True),
        scored=bool(index.get("requires_aesthetics_score")),
        low_res=low_res,
        size=card.get("size", ()),
    )
    controls = _controls(root, index)
    if controls:
        settings = [controlnet.from_config(read_json(root / name / "config.json")) for name in controls]
        description = describe_controlled(description, settings)
    within, unet = "network.network." if controls else "network.", lenient(sd_unet_keys.from_diffusers)
    if gated:
        unet = gligen_keys.from_diffusers(network, unet)
        description = describe_grounded(description)
    converts: dict[str, Convert] = {
        "unet": under(within, unet),
        "vae": under("space.autoencoder.", lenient(vae_keys.from_diffusers)),
    }
    for number, name in enumerate(texts):
        projected = bool(towers[number]["text"]["projection"])
        converts[name] = under(tower_prefix(description, number), partial(_text, projected))
    for number, name in enumerate(controls):
        converts[name] = under(f"network.held.{number}.", lenient(controlnet_keys.from_diffusers))
    pieces = tuple(piece_of(root, name, convert, variant) for name, convert in converts.items())
    left = [name for name in _LEFT_OUT if _is_there(index, name)]
    notes = (f"left out: {', '.join(left)}",) if left else ()
    return Assembly(PIPELINES[kind], root, description, pieces, card, notes)


def write(model: Model, path: str | Path) -> None:
    """Write a model as the folder of a pipeline, which diffusers and `read` load; element types are kept.

    Args:
        model: a latent U-Net under text of CLIP, latent diffusion's of captions, or an ADM that is told
            nothing, of pictures or of latents; a latent U-Net with ControlNets, or one of these alone.
        path: the folder, made if need be; files of the same names are replaced.

    Raises:
        InvalidInput: another kind of model, which diffusers has no folder for; or it cannot be written.
    """
    root = Path(path)
    if isinstance(model.denoiser, Guide):
        controlnet.write_folder(model, root)
        return
    if isinstance(model.conditioner, TextSmall):
        ldm_folder.write(model, root)
        return
    if isinstance(model.denoiser.network, ADM):
        unconditional_folder.write(model, root)
        return
    model, controls = separated(model)
    parts = Parts.of(model)
    if controls and not parts.pipeline.endswith(("DiffusionPipeline", "XLPipeline", "InpaintPipeline")):
        raise InvalidInput(f"no pipeline is a {parts.pipeline} with controls", where="model")
    scale, shift = parts.space.scale, parts.space.shift
    size = model.card.get("size", parts.space.factor * 64)
    sides = [size, size] if isinstance(size, int) else list(size)
    places = [side // parts.space.factor for side in sides]
    unet = {**sd_unet_config.to_config(parts.network), "sample_size": places[0]}
    ours, latents = parts.network.state_dict(), parts.autoencoder.state_dict()
    write_part(root / "unet", unet, to_theirs(sd_unet_keys.table(ours), ours))
    vae = {**vae_to_config(parts.autoencoder, scale, shift), "sample_size": max(sides)}
    write_part(root / "vae", vae, to_theirs(vae_keys.table(latents), latents))
    first = 2 if parts.kind == "xl refiner" else 1
    for number, states in enumerate(parts.text.encoders, first):
        suffix = "" if number == 1 else f"_{number}"
        # Where the states are read at an inner layer with the norm after it, that layer is the folder's last.
        depth = states.text.depth if parts.network.vector else states.text.place(states.layer)
        config = {**text_to_config(states), "num_hidden_layers": depth}
        weights = {n: t for n, t in states.text.state_dict().items() if layer_of(n) < depth}
        write_part(root / f"text_encoder{suffix}", config, weights, "model")
        _write_tokenizer(root / f"tokenizer{suffix}", states)
    scheduler = to_config(model.process, model.denoiser.prediction, model.card)
    write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {
        "_class_name": parts.pipeline,
        "_diffusers_version": _VERSION,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    for number in (1, 2) if parts.network.vector else (1,):
        suffix, there = ("" if number == 1 else "_2"), 0 <= number - first < len(parts.text.encoders)
        held = there and parts.text.encoders[number - first].text.projection
        kind = f"CLIPTextModel{'WithProjection' if held else ''}"
        index[f"text_encoder{suffix}"] = ["transformers", kind] if there else [None, None]
        index[f"tokenizer{suffix}"] = ["transformers", "CLIPTokenizer"] if there else [None, None]
    if parts.network.vector:
        index["force_zeros_for_empty_prompt"] = parts.text.zeros_for_empty
    if parts.kind == "xl refiner":
        index["requires_aesthetics_score"] = True
    elif not parts.network.vector:
        other = "depth_estimator" if "Depth" in parts.pipeline else "safety_checker"
        index |= {name: [None, None] for name in (other, "feature_extractor")}
    if parts.low_res is not None:
        noised = to_config(parts.low_res.process, model.denoiser.prediction, {"sampler": "ancestral"})
        write_json(
            root / "low_res_scheduler" / "scheduler_config.json", {**noised, "prediction_type": "epsilon"}
        )
        index |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": parts.low_res.most}
    for number, control in enumerate(controls.values()):
        controlnet.write_part_of(control, root / f"controlnet{f'_{number}' * (number > 0)}")
    if controls:
        index["_class_name"] = re.sub("(StableDiffusion(XL)?)", r"\1ControlNet", parts.pipeline, count=1)
        index["controlnet"] = ["diffusers", _CONTROLS[len(controls) > 1]]
    # Last, so that a folder without it was not written to the end.
    write_json(root / "model_index.json", index)


def _write_tokenizer(folder: Path, states: PromptStates) -> None:
    tokenizer = states.tokenizer
    write_json(folder / "vocab.json", tokenizer.table)
    write_text(folder / "merges.txt", "\n".join(("#version: 0.2", *tokenizer.pairs)) + "\n")
    tokens = {number: token for token, number in tokenizer.table.items()}
    pad = tokens[tokenizer.end if states.pad is None else states.pad]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    more = {"tokenizer_class": "CLIPTokenizer", "model_max_length": states.text.length}
    write_json(folder / "tokenizer_config.json", {**special, **more})


def _root(path: Path) -> Path:
    return path.parent if path.name == "model_index.json" else path


def _controls(root: Path, index: Mapping[str, Any]) -> list[str]:
    """The folders of a pipeline's controls: controlnet, controlnet_1, .."""
    if (said := index.get("controlnet")) is None:
        return []
    if not (isinstance(said, list) and len(said) == 2 and said[1] in _CONTROLS):
        where = "model_index.json.controlnet"
        raise InvalidInput(f"a control {str(said)[:60]} is not read", where=where, do=nearest("", _CONTROLS))
    several = said[1] == _CONTROLS[1]
    names = ["controlnet", *(f"controlnet_{number}" for number in range(1, 100) if several)]
    return names[:1] + [name for name in names[1:] if (root / name).is_dir()]


def _is_there(index: Mapping[str, Any], name: str) -> bool:
    """Whether a pipeline has a part; of one whose class is another than is known, InvalidInput."""
    value = index.get(name)
    if not (isinstance(value, list) and len(value) == 2 and value[1]):
        return False
    known = _CLASSES.get(name) or _TOKENIZERS.get(name.removesuffix("_2"))
    if known and value[1] not in known:
        raise InvalidInput(
            f"a {name} {value[1]!r} is not read", where=f"model_index.json.{name}", do=nearest("", known)
        )
    return True


def _tower(
    root: Path, index: Mapping[str, Any], name: str, config: Mapping[str, Any], vector: int
) -> dict[str, Any]:
    """The description of the prompt states of a text encoder and its tokenizer."""
    folder = name.replace("text_encoder", "tokenizer")
    if not _is_there(index, folder):
        raise InvalidInput(f"the pipeline has no {folder}", where=str(root / "model_index.json"))
    projected = index[name][1].endswith("WithProjection")
    tokenizer, pad = _tokenizer(root / folder)
    # XL reads the layer before the last, and no norm after it; in 2 that layer is the folder's last.
    return {
        "name": "prompt_states",
        "text": text_from_config(config, projected, name),
        "tokenizer": describe(tokenizer),
        **({"layer": -2, "norm": False} if vector else {}),
        **({} if pad == tokenizer.end else {"pad": pad}),
    }


def _tokenizer(folder: Path) -> tuple[BPE, int]:
    """The tokenizer of a folder, and the id that fills up a text."""
    if (folder / "vocab.json").is_file():
        tokenizer = BPE.read(folder)
    else:
        whole = read_json(folder / "tokenizer.json")
        try:
            model = whole["model"]
            added = {each["content"]: each["id"] for each in whole.get("added_tokens", ())}
            pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            table = {**model["vocab"], **added}
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointCorrupt(f"no tokenizer of CLIP ({error!r})", where=str(folder)) from None
        tokenizer = BPE.parse(json.dumps(table), "\n".join(pairs), str(folder))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (said := read_json(folder / name).get("pad_token")) is not None:
            token = said.get("content") if isinstance(said, dict) else said
            if token not in tokenizer.table:
                raise InvalidInput(f"there is no token {token!r}", where=str(folder / name))
            return tokenizer, tokenizer.table[token]
    return tokenizer, tokenizer.end


def _text(projected: bool, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a text encoder under our names; a projection that the tower does not have is left out."""
    found = clip_keys.from_transformers(theirs)
    return found if projected else {n: t for n, t in found.items() if n != "text_projection.weight"}


def _card(
    root: Path, configs: Mapping[str, Any], autoencoder: Mapping[str, Any], network: Mapping[str, Any]
) -> dict[str, Any]:
    """Default settings: the scheduler's walk, the size trained on, the usual guidance, the licence."""
    sides = configs["unet"].get("sample_size")
    sides = [sides, sides] if isinstance(sides, int) else sides
    factor = 2 ** (len(autoencoder["multipliers"]) - 1)
    upscaler = network["classes"]
    scale = 5.0 if network["vector"] else 9.0 if upscaler else 7.5
    return {
        "name": root.name,
        **walk_from_config(configs["scheduler"]),
        "guidance": [{"name": "classifier_free", "scale": scale}],
        **({"size": [side * factor for side in sides]} if sides else {}),
        **licence_of(root),
    }
