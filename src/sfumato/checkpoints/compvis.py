"""Single files of Stable Diffusion 1, 2 and XL, as CompVis and Stability publish them; VAE files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints import clip_keys, sd_unet_keys, vae_keys
from sfumato.checkpoints.assembly import Assembly, Convert, Entries, Piece, lenient, under
from sfumato.checkpoints.safe import read_header, read_tensors
from sfumato.checkpoints.stable import describe_model, tower_prefix
from sfumato.checkpoints.torch_file import is_torch, read_torch
from sfumato.checkpoints.weights import Table, find
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.encoders.clip_text import ClipText
from sfumato.model import Model

UNET, VAE = "model.diffusion_model.", "first_stage_model."
"""What the names of the two begin with; those of the text towers are in clip_keys.COMPVIS."""

_UNET_NAMES = (f"{UNET}time_embed.0.weight", f"{UNET}middle_block.1.proj_in.weight")
_VAE_NAMES = ("encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.conv_norm_out.weight")

_IDLE = re.compile(
    r"model_ema\.|(first_stage_model\.)?loss\.|depth_model\.|low_scale_model\.|denoiser\.sigmas$|global_step$"
    r"|(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|v_pred|ztsnr)$"
)
"""What follows from the settings, averaged copies of the weights, and estimators that nobody asks here."""

_KINDS: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {"towers": ({},), "size": 512},
    "stable diffusion 2": {"towers": ({"layer": -2, "pad": 0},), "size": 512},
    "stable diffusion xl": {
        "towers": ({"layer": -2, "norm": False}, {"layer": -2, "norm": False, "pad": 0}),
        "size": 1024,
    },
    "stable diffusion xl refiner": {"towers": ({"layer": -2, "norm": False, "pad": 0},), "size": 1024},
}
"""How text is read, and the size trained on, by the names of clip_keys.COMPVIS."""

_SCALES = {"xl": 0.13025, "upscaler": 0.08333}
_PREDICTIONS = {"epsilon": "noise", "eps": "noise", "v": "velocity", "v_prediction": "velocity"}


def matches(path: Path) -> bool:
    """Whether a file holds a latent U-Net under CompVis's prefix, or nothing but an autoencoder."""
    try:
        return path.is_file() and _table(path) is not None
    except SfumatoError:
        return False


def read(path: str | Path, *, strict: bool = True, prediction: str | None = None) -> Model:
    """The model of a file, on the CPU; of an autoencoder alone, that.

    Args:
        path: a file of safetensors or torch.save.
        strict: refuse weights that do not fit exactly, or NaN among them; else warn and load what fits.
        prediction: what the network outputs, noise or velocity. Stable Diffusion 2's base model has noise and
            its model of 768 pixels velocity, under the same names and shapes: of them it is to be said, where
            the file's metadata do not.

    Raises:
        InvalidInput: no such file, a text encoder of another kind, or a prediction that nobody tells.
        CheckpointCorrupt, KeyMismatch, NotFinite: the weights are damaged or do not fit.
    """
    return report(path, prediction=prediction).read(strict)


def report(path: str | Path, prediction: str | None = None) -> Assembly:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    file = Path(path)
    table = _table(file)
    if table is None:
        raise InvalidInput("it holds no latent U-Net and no autoencoder", where=str(file))
    parts = {"unet": _begun(table, UNET), "vae": _begun(table, VAE)}
    if not parts["unet"]:
        return _autoencoder(file, table)
    found = [name for name, towers in clip_keys.COMPVIS.items() if all(_begun(table, p) for p, _ in towers)]
    if not found:
        raise InvalidInput(
            "its text is read by no CLIP, or the text encoder is left out",
            where=str(file),
            do="give the whole model; latent diffusion's first models (BERT, classes) are not read",
        )
    kind = found[0]
    network = sd_unet_keys.settings({name: shape for name, (shape, _) in parts["unet"].items()})
    upscaler, wide = bool(network["classes"]), bool(network["vector"])
    autoencoder = None
    vae = {name: entry for name, entry in parts["vae"].items() if not name.startswith("loss.")}
    if vae:
        autoencoder = vae_keys.settings({name: shape for name, (shape, _) in vae.items()})
    usual = _SCALES["xl"] if wide else _SCALES["upscaler"] if upscaler else 0.18215
    scale = _scale(file, table) or usual
    pieces: dict[str, tuple[str, Entries, Convert]] = {
        "unet": (UNET, parts["unet"], under("network.", lambda theirs: dict(theirs)))
    }
    if vae:
        pieces["vae"] = (VAE, vae, under("space.autoencoder.", _four_ways))
    towers, converts = [], []
    for (prefix, scheme), reads in zip(clip_keys.COMPVIS[kind], _KINDS[kind]["towers"], strict=True):
        held = _begun(table, prefix)
        projected = scheme == "openclip" and wide
        convert = partial(_openclip, projected, str(file)) if scheme == "openclip" else _transformers
        text = clip_keys.text_settings(
            {n: tuple(t.shape) for n, t in convert(_hollow(held)).items()}, str(file)
        )
        text["activation"] = "gelu" if scheme == "openclip" else "quick_gelu"
        towers.append({"name": "prompt_states", "text": {"name": "clip_text", **text}, **reads})
        converts.append((prefix, held, convert))
    told, how = _prediction(file, table, kind, network, prediction)
    description = describe_model(
        network,
        autoencoder,
        scale,
        0.0,
        towers,
        {"name": "betas", "schedule": "scaled_linear"},
        told,
        zeros=kind == "stable diffusion xl",
        scored=kind == "stable diffusion xl refiner",
    )
    for number, (prefix, held, convert) in enumerate(converts):
        ours = under(tower_prefix(description, number), convert)
        pieces[f"text {number + 1}"] = (prefix, held, ours)
    taken = {prefix + name for prefix, entries, _ in pieces.values() for name in entries}
    left = [name for name in table.entries if name not in taken]
    idle = [name for name in left if _IDLE.match(name) or clip_keys.ignored(name)]
    if rest := {name: table.entries[name] for name in left if name not in set(idle)}:
        pieces["others"] = ("", rest, lambda theirs: dict(theirs))
    size = 768 if kind == "stable diffusion 2" and told == "velocity" else _KINDS[kind]["size"]
    card = {
        "name": file.stem,
        "sampler": "dpm_solver_pp",
        "times": "trailing",
        "steps": 30,
        "guidance": [{"name": "classifier_free", "scale": 5.0 if wide else 9.0 if upscaler else 7.5}],
        "size": [size, size],
        **_licence(file, table),
    }
    notes = (
        how,
        *([f"{len(idle)} tensors left out: averages, tables and estimators"] if idle else []),
        *([] if vae else ["the file holds no autoencoder: latents and no pictures"]),
    )
    held_pieces = tuple(_piece(name, file, table, *each) for name, each in pieces.items())
    return Assembly(f"{kind}, one file", file, description, held_pieces, card, notes)


def _table(path: Path) -> Table | None:
    """The state dict of a file that is of this kind."""
    return find(path, _UNET_NAMES) or next(
        (
            table
            for prefix in (VAE, "")
            if (table := find(path, [prefix + name for name in _VAE_NAMES[:2]])) is not None
        ),
        None,
    )


def _begun(table: Table, prefix: str) -> dict[str, Any]:
    """Entries whose names begin so, without that."""
    return {n.removeprefix(prefix): each for n, each in table.entries.items() if n.startswith(prefix)}


def _hollow(entries: Entries) -> dict[str, Tensor]:
    return {n: torch.empty(s, dtype=d, device="meta") for n, (s, d) in entries.items()}


def _piece(name: str, file: Path, table: Table, prefix: str, entries: Entries, convert: Convert) -> Piece:
    stored = {each: (file, table.prefix + prefix + each) for each in entries}
    return Piece(name, entries, stored, convert, table.place)


def _autoencoder(file: Path, table: Table) -> Assembly:
    """An autoencoder alone, under CompVis's names or diffusers'."""
    prefix = VAE if f"{VAE}encoder.conv_in.weight" in table.entries else ""
    entries = {n: e for n, e in _begun(table, prefix).items() if not _IDLE.match(n)}
    convert = lenient(vae_keys.from_diffusers) if vae_keys.is_diffusers(entries) else _four_ways
    shapes = {name: tuple(tensor.shape) for name, tensor in convert(_hollow(entries)).items()}
    piece = _piece("vae", file, table, prefix, entries, under("network.", convert))
    described = {"autoencoder": vae_keys.settings(shapes)}
    return Assembly("an autoencoder alone", file, described, (piece,), {"name": file.stem})


def _four_ways(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention's matrices as convolutions of one place, where a file has them flat."""
    flat = re.compile(r".*\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight")
    return {n: t[..., None, None] if t.ndim == 2 and flat.fullmatch(n) else t for n, t in theirs.items()}


def _transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return clip_keys.from_transformers(theirs)


def _openclip(projected: bool, where: str, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a text tower under OpenCLIP's names → under ours."""
    start = "transformer.resblocks."
    numbers = [int(name.removeprefix(start).split(".")[0]) for name in theirs if name.startswith(start)]
    width = theirs["token_embedding.weight"].shape[1] if "token_embedding.weight" in theirs else 1
    with torch.device("meta"):
        tower = ClipText(
            width=width, depth=max(numbers, default=0) + 1, heads=1, projection=width if projected else 0
        )
    return clip_keys.from_openclip(clip_keys.text_rows(tower), theirs, where)


def _scale(file: Path, table: Table) -> float | None:
    """The scale of the latents where the file tells it, measured in training."""
    if table.entries.get("scale_factor", ((1,), None))[0] != ():
        return None
    name = f"{table.prefix}scale_factor"
    if not is_torch(file):
        return float(read_tensors(file, (name,))[name])
    held: Any = read_torch(file, mapped=True)
    for key in table.place.split(".") if table.place else ():
        held = held[key]
    return float(held[name])


def _metadata(file: Path, table: Table) -> dict[str, str]:
    return read_header(file).metadata if table.form == "safetensors" else {}


def _prediction(
    file: Path, table: Table, kind: str, network: Mapping[str, Any], said: str | None
) -> tuple[str, str]:
    """(What the network outputs, how that is known); of Stable Diffusion 2 it is never guessed."""
    if said is not None:
        if said not in ("noise", "velocity"):
            raise InvalidInput(f"{said!r} is not noise or velocity", where="prediction")
        return said, f"prediction {said}, as was said"
    metadata = _metadata(file, table)
    for key in ("modelspec.prediction_type", "prediction_type", "ss_prediction_type"):
        if (name := _PREDICTIONS.get(metadata.get(key, ""))) is not None:
            return name, f"prediction {name}, as the file's {key} says"
    if "v_pred" in table.entries:
        return "velocity", "prediction velocity, as the file's v_pred says"
    if kind != "stable diffusion 2":
        return "noise", f"prediction noise, as {kind} has it"
    if network["classes"]:
        return "velocity", "prediction velocity, as the x4 upscaler has it"
    if network["in_channels"] != network["out_channels"]:
        return "noise", "prediction noise, as Stable Diffusion 2's inpainting and depth models have it"
    raise InvalidInput(
        "Stable Diffusion 2 outputs noise (base, 512 pixels) or velocity (768 pixels), which its weights do "
        "not tell",
        where=str(file),
        do="say prediction='velocity' or prediction='noise'",
    )


def _licence(file: Path, table: Table) -> dict[str, str]:
    told = _metadata(file, table).get("modelspec.license")
    return {"licence": told[:200]} if told else {}
