"""Folders of diffusers' unconditional pipelines: DDPM, DDIM and latent diffusion that is told nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints import unet2d, unet2d_keys, vae_keys
from sfumato.checkpoints.assembly import Assembly, Piece, lenient, under
from sfumato.checkpoints.diffusers_config import (
    refuse_others,
    vae_from_config,
    vae_to_config,
    vq_from_config,
    vq_to_config,
)
from sfumato.checkpoints.diffusers_files import (
    folder_of,
    licence_of,
    piece_in,
    read_json,
    write_json,
    write_part,
)
from sfumato.checkpoints.scheduler_config import model_from_config, to_config, walk_from_config
from sfumato.checkpoints.translation import to_theirs
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.nothing import Nothing
from sfumato.core.errors import InvalidInput
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel

PIPELINES = {
    "DDPMPipeline": "DDPM",
    "DDIMPipeline": "DDPM, walked by DDIM",
    "LDMPipeline": "latent diffusion, nothing said",
}
"""The pipelines of a UNet2DModel, in words."""

_NATIVE = "save it natively"
_CLIPPING = ("DDPMScheduler", "DDIMScheduler")
"""Schedulers that keep the data inside of their range unless told not to."""

_UNTRAINED = ("quantize.steps", "quantize.used")
"""What a codebook counts while it is trained."""


def report(root: Path, index: Mapping[str, Any], variant: str) -> Assembly:
    """What such a folder is found to be; see `diffusers.report`, which finds it."""
    kind = index["_class_name"]
    parts = ("unet", "scheduler", *(["vqvae"] if kind == "LDMPipeline" else []))
    refuse_others({n: v for n, v in index.items() if v != [None, None]}, "model_index.json", {}, parts)
    known = {"unet": ("UNet2DModel",), "vqvae": ("VQModel", "AutoencoderKL")}
    classes = {name: (index.get(name) or [""])[-1] for name in parts}
    for name, class_name in classes.items():
        if not class_name or class_name not in known.get(name, (class_name,)):
            raise InvalidInput(f"a {name} {class_name!r} is not read", where=f"model_index.json.{name}")
    configs = {
        name: read_json(folder_of(root, name) / f"{'scheduler_' * (name == 'scheduler')}config.json")
        for name in parts
    }
    # The index has the last word, and this pipeline makes DDIM of whatever it is given.
    walker = "DDIMScheduler" if kind == "DDIMPipeline" else classes["scheduler"]
    scheduler = {**configs["scheduler"], "_class_name": walker}
    network = unet2d.from_config(configs["unet"])
    learned = _learned(network, scheduler)
    process, prediction = model_from_config(scheduler)
    convert = under("network.", partial(unet2d_keys.from_diffusers, network))
    pieces = [piece_in(folder_of(root, "unet"), "unet", convert, variant)]
    factor, multiple, notes = 1, 2 ** (len(network["multipliers"]) - 1), list[str]()
    space: dict[str, Any] = {"name": "pixel", "channels": network["in_channels"], "multiple": multiple}
    if "vqvae" in parts:
        autoencoder, scale, shift = _autoencoder(configs["vqvae"], classes["vqvae"])
        if autoencoder["channels"] != network["in_channels"]:
            raise InvalidInput(
                f"latents of {autoencoder['channels']} channels for a U-Net of {network['in_channels']}",
                where="unet.config.in_channels",
            )
        if classes["vqvae"] == "VQModel" and not configs["vqvae"].get("scaling_factor"):
            notes.append("latents are not scaled, as when diffusers told no scale of VQModel")
        factor = 2 ** (len(autoencoder["multipliers"]) - 1)
        space = {**space, "name": "latent", "scale": scale, "shift": shift, "autoencoder": autoencoder}
        decoded = under("space.autoencoder.", lenient(vae_keys.from_diffusers))
        pieces.append(piece_in(root / "vqvae", "vqvae", decoded, variant))
    clipped = _clipped(scheduler)
    if clipped and walker == "DDIMScheduler":
        notes.append("the noise follows the clipped data, as diffusers has it with use_clipped_model_output")
    description = {
        "network": network,
        "process": process,
        "prediction": prediction,
        "time_input": "index",
        "learned_range": learned,
        "conditioner": _conditioner(network["classes"], pieces[0]),
        "space": space,
    }
    card = {
        "name": root.name,
        **_walk(kind, scheduler, process["steps"], learned),
        "guidance": clipped,
        **_size(configs["unet"].get("sample_size"), factor),
        **licence_of(root),
    }
    return Assembly(PIPELINES[kind], root, description, tuple(pieces), card, tuple(notes))


def write(model: Model, root: Path) -> None:
    """Write a model that is told nothing as such a folder; see `diffusers.write`, which asks for it.

    Pictures are of DDPMPipeline where the card walks by its ancestral sampler or the variance is learned, and
    else of DDIMPipeline; latents of LDMPipeline.

    Raises:
        InvalidInput: a model that such a folder cannot say.
    """
    network, space = model.denoiser.network, model.space
    assert isinstance(network, ADM)
    _refuse_untold(model, network)
    factor = space.factor if isinstance(space, Latent) else 1
    configs = {"unet": {**unet2d.to_config(network), "sample_size": _places(model, factor)}}
    ours = network.state_dict()
    settings = {
        key: getattr(network, key) for key in ("blocks", "heads", "head_channels", "new_attention_order")
    }
    tensors = {"unet": to_theirs(unet2d_keys.table(ours, settings), ours)}
    kind = _pipeline(model)
    if isinstance(space, Latent):
        autoencoder = space.autoencoder
        if isinstance(autoencoder, VQ):
            configs["vqvae"] = vq_to_config(autoencoder, space.scale)
        else:
            assert isinstance(autoencoder, KL)
            configs["vqvae"] = vae_to_config(autoencoder, space.scale, 0.0)
        held = {n: t for n, t in autoencoder.state_dict().items() if n not in _UNTRAINED}
        tensors["vqvae"] = to_theirs(vae_keys.table(held), held)
    scheduler = _scheduler(model, kind)
    for name, config in configs.items():
        write_part(root / name, config, tensors[name])
    write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {
        "_class_name": kind,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **{name: ["diffusers", config["_class_name"]] for name, config in configs.items()},
    }
    # Last, so that a folder without it was not written to the end.
    write_json(root / "model_index.json", index)


def _autoencoder(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], float, float]:
    """(Description, scale, shift)."""
    return (*vq_from_config(config), 0.0) if name == "VQModel" else vae_from_config(config)


def _learned(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> bool:
    """Whether the network says a variance beside the noise; the scheduler has to know."""
    given, made = network["in_channels"], network["out_channels"]
    said = scheduler.get("variance_type") if scheduler["_class_name"] == "DDPMScheduler" else None
    if said == "learned":
        raise InvalidInput("a variance that is learned without its range", where="scheduler.variance_type")
    learned = said == "learned_range"
    if made != (2 * given if learned else given):
        raise InvalidInput(
            f"{made} channels out of {given}, and a variance that is {said or 'not learned'}",
            where="unet.config.out_channels",
        )
    return learned


def _conditioner(classes: int, unet: Piece) -> dict[str, Any]:
    """Nothing; or classes by their numbers, as no pipeline tells their names."""
    if not classes:
        return {"name": "nothing"}
    held = unet.entries.get("class_embedding.weight", ((0,), None))[0][0]
    if held != classes:
        raise InvalidInput(f"a table of {held} for {classes} classes", where="unet.config.num_class_embeds")
    return {"name": "class_label", "labels": {"label": [str(number) for number in range(classes)]}}


def _walk(kind: str, scheduler: Mapping[str, Any], steps: int, learned: bool) -> dict[str, Any]:
    """Sampler, times and steps; DDPM takes them all."""
    walk = walk_from_config(scheduler)
    if learned:
        walk["sampler"]["variance"] = "learned"
    if kind == "DDPMPipeline" and scheduler["_class_name"] == "DDPMScheduler":
        walk["steps"] = 1000
    return {**walk, "steps": min(walk["steps"], steps)}


def _clipped(scheduler: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the scheduler keeps the data inside of their range."""
    if scheduler.get("thresholding"):
        share, most = scheduler.get("dynamic_thresholding_ratio", 0.995), scheduler.get("sample_max_value", 1)
        return [{"name": "threshold", "percentile": float(share), "most": float(most)}]
    if scheduler["_class_name"] in _CLIPPING and scheduler.get("clip_sample", True):
        return [{"name": "threshold", "bound": float(scheduler.get("clip_sample_range", 1.0))}]
    return []


def _size(sides: Any, factor: int) -> dict[str, Any]:
    """The size trained on, in pixels, where it is told."""
    if not sides:
        return {}
    both = [sides, sides] if isinstance(sides, int) else list(sides)
    if len(both) != 2 or not all(type(side) is int and side > 0 for side in both):
        raise InvalidInput(f"{sides!r} is no size", where="unet.config.sample_size")
    return {"size": [side * factor for side in both]}


def _refuse_untold(model: Model, network: ADM) -> None:
    """Refuse what no such folder tells."""
    space, conditioner, denoiser = model.space, model.conditioner, model.denoiser
    numbered = (
        isinstance(conditioner, ClassLabel)
        and not conditioner.null_row
        and [*conditioner.labels.values()] == [list(map(str, range(network.classes)))]
    )
    if not isinstance(conditioner, Nothing) and not numbered:
        raise InvalidInput(
            "diffusers' unconditional folders say nothing to a model but numbers of classes",
            where="model.conditioner",
            do=_NATIVE,
        )
    if not (isinstance(space, Pixel) and space.patch == 1) and not (
        isinstance(space, Latent) and isinstance(space.autoencoder, KL | VQ) and not space.shift
    ):
        raise InvalidInput(
            "diffusers' unconditional folders hold models of pictures as they are, or of latents of a kl or "
            "vq autoencoder without a shift",
            where="model.space",
            do=_NATIVE,
        )
    if denoiser.time_input != "index" and not (
        denoiser.time_input == "rescaled_index" and getattr(model.process, "steps", 0) == 1000
    ):
        raise InvalidInput(
            f"a network of diffusers is told the index, not {denoiser.time_input}", where="model.time_input"
        )


def _pipeline(model: Model) -> str:
    """The pipeline of a model's space and walk."""
    if isinstance(model.space, Latent):
        return "LDMPipeline"
    said = model.card.get("sampler", "ddim")
    name = said["name"] if isinstance(said, Mapping) else said
    return "DDPMPipeline" if name == "ancestral" or model.denoiser.learned_range else "DDIMPipeline"


def _scheduler(model: Model, kind: str) -> dict[str, Any]:
    """The scheduler's configuration: the card's walk, and its threshold."""
    card = dict(model.card)
    if model.denoiser.learned_range:
        card["sampler"] = {"name": "ancestral", "variance": "learned"}
    elif kind == "DDIMPipeline":
        card["sampler"] = "ddim"
    config = to_config(model.process, model.denoiser.prediction, card)
    named = [each if isinstance(each, Mapping) else {"name": each} for each in card.get("guidance") or ()]
    kept = [each for each in named if each.get("name") == "threshold"]
    if not kept:
        return config
    percentile, bound = kept[0].get("percentile"), kept[0].get("bound", 1.0)
    if config["_class_name"] not in _CLIPPING or (percentile is not None and bound != 1):
        raise InvalidInput("a threshold no scheduler of diffusers has", where="card.guidance", do=_NATIVE)
    if percentile is None:
        return {**config, "clip_sample": True, "clip_sample_range": bound}
    most = {"sample_max_value": kept[0].get("most", 100.0)}
    return {**config, "thresholding": True, "dynamic_thresholding_ratio": percentile, **most}


def _places(model: Model, factor: int) -> int | list[int]:
    """The size the card tells, in places of x."""
    size = model.card.get("size", 64 * factor)
    sides = [side // factor for side in ([size, size] if isinstance(size, int) else size)]
    return sides[0] if len(set(sides)) == 1 else sides
