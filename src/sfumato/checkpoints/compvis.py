"""Single files of Stable Diffusion 1, 2 and XL, as CompVis and Stability publish them; VAE files alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints import clip_keys, controlnet_keys, sd_unet_keys, vae_keys
from sfumato.checkpoints.assembly import Assembly, lenient, under
from sfumato.checkpoints.controlled import describe_controlled
from sfumato.checkpoints.controlnet import CONTROL
from sfumato.checkpoints.inside import sensible
from sfumato.checkpoints.one_file import UNET, VAE, OneFile, four_ways, hollow
from sfumato.checkpoints.stable import describe_model, tower_prefix
from sfumato.checkpoints.weights import find
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.core.meta import without_numbers
from sfumato.encoders.clip_text import ClipText
from sfumato.model import Model

_VAE_NAMES = ("encoder.conv_in.weight", "decoder.conv_in.weight")

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
BETAS, UPSCALER_BETAS = (0.00085, 0.012), (0.0001, 0.02)
"""Ends of the betas, which are linear in their square roots, where a file does not hold them."""
_PREDICTIONS = {"epsilon": "noise", "eps": "noise", "v": "velocity", "v_prediction": "velocity"}


def matches(path: Path) -> bool:
    """Whether a file holds a latent U-Net under CompVis's prefix, or nothing but an autoencoder."""
    try:
        return path.is_file() and (OneFile.of_clip(path) is not None or _autoencoder(path) is not None)
    except SfumatoError:
        return False


def read(path: str | Path, *, strict: bool = True, prediction: str | None = None) -> Model:
    """The model of a file, on the CPU, with the ControlNet in it, if any; of an autoencoder alone, that.

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


@sensible
def report(path: str | Path, prediction: str | None = None) -> Assembly:
    """What a file is found to be, with the settings of `read`; no weights are read. Raises as it does."""
    file = Path(path)
    whole = OneFile.of_clip(file)
    if whole is None:
        if (alone := _autoencoder(file)) is None:
            raise InvalidInput("it holds no latent U-Net and no autoencoder", where=str(file))
        return alone
    unet, vae, control = whole.begun(UNET), whole.begun(VAE), whole.begun(CONTROL)
    kinds = clip_keys.COMPVIS.items()
    kind = next((name for name, towers in kinds if all(whole.begun(p) for p, _ in towers)), None)
    if kind is None:
        raise InvalidInput(
            "its text is read by no CLIP, or the text encoder is left out",
            where=str(file),
            do="give the whole model",
        )
    network = sd_unet_keys.settings({name: shape for name, (shape, _) in unet.items()})
    upscaler, wide = bool(network["classes"]), bool(network["vector"])
    autoencoder = vae_keys.settings({name: shape for name, (shape, _) in vae.items()}) if vae else None
    usual = _SCALES["xl"] if wide else _SCALES["upscaler"] if upscaler else 0.18215
    within = "network.network." if control else "network."
    pieces = [whole.piece("unet", UNET, unet, under(within, lambda theirs: dict(theirs)))]
    if vae:
        pieces.append(whole.piece("vae", VAE, vae, under("space.autoencoder.", four_ways)))
    towers, converts = [], []
    for (prefix, scheme), reads in zip(clip_keys.COMPVIS[kind], _KINDS[kind]["towers"], strict=True):
        held = whole.begun(prefix)
        projected = scheme == "openclip" and wide
        convert = partial(_openclip, projected, str(file)) if scheme == "openclip" else _transformers
        text = clip_keys.text_settings(
            {n: tuple(t.shape) for n, t in convert(hollow(held)).items()}, str(file)
        )
        text["activation"] = "gelu" if scheme == "openclip" else "quick_gelu"
        towers.append({"name": "prompt_states", "text": {"name": "clip_text", **text}, **reads})
        converts.append((prefix, held, convert))
    told, how = _prediction(whole, kind, network, prediction)
    description = describe_model(
        network,
        autoencoder,
        whole.scale or usual,
        0.0,
        towers,
        whole.process(*(UPSCALER_BETAS if upscaler else BETAS)),
        told,
        zeros=kind == "stable diffusion xl",
        scored=kind == "stable diffusion xl refiner",
    )
    if control:
        settings = controlnet_keys.settings({name: shape for name, (shape, _) in control.items()})
        description = describe_controlled(description, [settings])
        pieces.append(
            whole.piece("control", CONTROL, control, under("network.held.0.", lambda theirs: dict(theirs)))
        )
    for number, (prefix, held, convert) in enumerate(converts):
        ours = under(tower_prefix(description, number), convert)
        pieces.append(whole.piece(f"text {number + 1}", prefix, held, ours))
    others, idle = whole.rest(pieces)
    size = 768 if kind == "stable diffusion 2" and told == "velocity" else _KINDS[kind]["size"]
    card = {
        "name": file.stem,
        "sampler": "dpm_solver_pp",
        "times": "trailing",
        "steps": 30,
        "guidance": [{"name": "classifier_free", "scale": 5.0 if wide else 9.0 if upscaler else 7.5}],
        "size": [size, size],
        **whole.licence,
    }
    notes = (
        how,
        *idle,
        *([] if vae else ["the file holds no autoencoder: latents and no pictures"]),
    )
    return Assembly(f"{kind}, one file", file, description, (*pieces, *others), card, notes)


def _autoencoder(path: Path) -> Assembly | None:
    """An autoencoder alone, under CompVis's names or diffusers'; None for anything else."""
    if OneFile.of_the_first(path) is not None:
        return None
    for prefix in (VAE, ""):
        if (table := find(path, [prefix + name for name in _VAE_NAMES])) is not None:
            whole = OneFile(path, table)
            entries = whole.begun(prefix)
            convert = lenient(vae_keys.from_diffusers) if vae_keys.is_diffusers(entries) else four_ways
            shapes = {name: tuple(tensor.shape) for name, tensor in convert(hollow(entries)).items()}
            piece = whole.piece("vae", prefix, entries, under("network.", convert))
            described = {"autoencoder": vae_keys.settings(shapes)}
            return Assembly("an autoencoder alone", path, described, (piece,), {"name": path.stem})
    return None


def _transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return clip_keys.from_transformers(theirs)


def _openclip(projected: bool, where: str, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a text tower under OpenCLIP's names → under ours."""
    start = "transformer.resblocks."
    numbers = [int(name.removeprefix(start).split(".")[0]) for name in theirs if name.startswith(start)]
    width = theirs["token_embedding.weight"].shape[1] if "token_embedding.weight" in theirs else 1
    with without_numbers():
        tower = ClipText(
            width=width, depth=max(numbers, default=0) + 1, heads=1, projection=width if projected else 0
        )
    return clip_keys.from_openclip(clip_keys.text_rows(tower), theirs, where)


def _prediction(whole: OneFile, kind: str, network: Mapping[str, Any], said: str | None) -> tuple[str, str]:
    """(What the network outputs, how that is known); of Stable Diffusion 2 it is never guessed."""
    if said is not None:
        if said not in ("noise", "velocity"):
            raise InvalidInput(f"{said!r} is not noise or velocity", where="prediction")
        return said, f"prediction {said}, as was said"
    metadata = whole.metadata
    for key in ("modelspec.prediction_type", "prediction_type", "ss_prediction_type"):
        if (name := _PREDICTIONS.get(metadata.get(key, ""))) is not None:
            return name, f"prediction {name}, as the file's {key} says"
    if "v_pred" in whole.table.entries:
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
        where=str(whole.path),
        do="say prediction='velocity' or prediction='noise'",
    )
