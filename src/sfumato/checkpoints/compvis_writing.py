"""Writes latent and Stable Diffusion's models as one file, under CompVis's and Stability's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints import clip_keys, controlnet
from sfumato.checkpoints.compvis import BETAS, UPSCALER_BETAS
from sfumato.checkpoints.controlled import separated
from sfumato.checkpoints.one_file import CLASSES, TEXT, UNET, VAE
from sfumato.checkpoints.stable import Parts, layer_of
from sfumato.conditioners.boxes import Boxes
from sfumato.conditioners.class_token import ClassToken
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.alone import Guide
from sfumato.core.atomic import write_tensors
from sfumato.core.errors import InvalidInput
from sfumato.core.meta import without_numbers
from sfumato.core.prediction import Noise, Velocity
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.betas import Betas
from sfumato.spaces.latent import Latent

_TOKENS = 49408


def write(model: Model, path: str | Path) -> None:
    """Write a model as one safetensors file, which `compvis.read` and other tools load.

    Element types are kept. Of latent diffusion's first models the vocabulary or the labels are to be said
    again when the file is read. What the file has no place for must be as everywhere in Stable Diffusion:
    betas, tokenizer, activations. Of version 2 the last layer of the text tower, which nobody reads, is zeros
    where the model does not have it. A ControlNet is written beside
    its network, and one alone, as the released ones are.

    Raises:
        InvalidInput: a model such a file cannot say, or the file cannot be written.
    """
    if isinstance(model.denoiser, Guide):
        controlnet.write_file(model, path)
        return
    if first := _of_the_first(model):
        # Their betas are many: the file tells them, as training leaves it.
        assert isinstance(model.process, Betas)
        _save({**first, "betas": model.process.betas}, model, path)
        return
    model, controls = separated(model)
    if len(controls) > 1:
        raise _unsaid(f"{len(controls)} controls")
    parts = Parts.of(model)
    kind = _kind(model, parts)
    tensors = {UNET + name: tensor for name, tensor in parts.network.state_dict().items()}
    tensors |= {VAE + name: tensor for name, tensor in parts.autoencoder.state_dict().items()}
    for control in controls.values():
        tensors |= {controlnet.CONTROL + name: tensor for name, tensor in control.state_dict().items()}
    # The scale stands beside them, as training leaves it.
    tensors["scale_factor"] = torch.tensor(parts.space.scale, dtype=torch.float64)
    if getattr(model.process, "zero_terminal_snr", False):
        tensors["ztsnr"] = torch.zeros(0)
    for (prefix, scheme), states in zip(clip_keys.COMPVIS[kind], parts.text.encoders, strict=True):
        held = states.text.state_dict()
        if scheme == "openclip":
            held = _openclip(states, parts)
        tensors |= {prefix + name: tensor for name, tensor in held.items()}
    _save(tensors, model, path)


def _save(tensors: Mapping[str, Tensor], model: Model, path: str | Path) -> None:
    told = {Noise: "epsilon", Velocity: "v"}[type(model.denoiser.prediction)]
    metadata = {"format": "pt", "modelspec.prediction_type": told}
    if licence := model.card.get("licence"):
        metadata["modelspec.license"] = str(licence)
    write_tensors(path, tensors, metadata)


def _of_the_first(model: Model) -> dict[str, Tensor]:
    """The weights of one of latent diffusion's first models under their names; none of any other."""
    conditioner, space, network = model.conditioner, model.space, model.denoiser.network
    prefixes = {TextSmall: TEXT, Boxes: TEXT, ClassToken: CLASSES, Nothing: "", MaskedImage: ""}
    autoencoder = getattr(space, "autoencoder", None)
    usual = type(model.denoiser.prediction) is Noise and type(model.process) is Betas
    if not (
        usual
        and type(conditioner) in prefixes
        and getattr(conditioner, "style", "ldm") == "ldm"
        and isinstance(network, ADM | SDUNet)
        and isinstance(space, Latent)
        and isinstance(autoencoder, KL | VQ)
        and getattr(autoencoder, "pack", 1) == 1
        and not space.shift
        and not model.denoiser.learned_range
    ):
        return {}
    prefix = prefixes[type(conditioner)]
    inner = {TEXT: "encoder.", CLASSES: "embedding."}.get(prefix, "")
    told = conditioner.state_dict() if isinstance(conditioner, torch.nn.Module) else {}
    return {
        **{UNET + name: tensor for name, tensor in network.state_dict().items()},
        **{VAE + name: tensor for name, tensor in autoencoder.state_dict().items()},
        **{prefix + name.removeprefix(inner): tensor for name, tensor in told.items()},
        "scale_factor": torch.tensor(space.scale, dtype=torch.float64),
    }


def _kind(model: Model, parts: Parts) -> str:
    """The name in clip_keys.COMPVIS; InvalidInput where a file cannot say what the model is."""
    if not isinstance(model.process, Betas) or not _usual(model.process, parts):
        raise _unsaid("betas other than Stable Diffusion's")
    if type(model.denoiser.prediction) not in (Noise, Velocity):
        raise _unsaid("a prediction of neither noise nor velocity")
    if parts.space.shift:
        raise _unsaid("a shift of the latents")
    activations = [states.text.activation for states in parts.text.encoders]
    if any(
        len(states.tokenizer.table) != _TOKENS or states.tokenizer.vocabulary
        for states in parts.text.encoders
    ):
        raise _unsaid("a vocabulary other than CLIP's")
    if parts.kind == "sd":
        kind = f"stable diffusion {1 if activations == ['quick_gelu'] else 2}"
        if (
            kind.endswith("1")
            and parts.text.encoders[0].text.place(parts.text.encoders[0].layer)
            != parts.text.encoders[0].text.depth
        ):
            raise _unsaid("text read at an inner layer")
        return kind
    expected = {"xl": ["quick_gelu", "gelu"], "xl refiner": ["gelu"]}[parts.kind]
    if activations != expected:
        raise _unsaid("text towers other than XL's")
    return f"stable diffusion {parts.kind}"


def _usual(process: Betas, parts: Parts) -> bool:
    """Whether it is the process that such a file is taken for."""
    ends = BETAS if parts.low_res is None else UPSCALER_BETAS
    usual = Betas("scaled_linear", 1000, *ends, process.zero_terminal_snr)
    return process.steps == 1000 and torch.allclose(process.betas, usual.betas, rtol=1e-9, atol=0)


def _openclip(states: PromptStates, parts: Parts) -> dict[str, Tensor]:
    """The weights of a tower under OpenCLIP's names."""
    tower, held = states.text, dict(states.text.state_dict())
    if parts.kind == "sd":
        # Version 2 reads the layer before the last.
        last = tower.place(states.layer)
        held = {name: tensor for name, tensor in held.items() if layer_of(name) <= last}
        if last == tower.depth:
            before = f"text_model.encoder.layers.{last - 1}."
            held |= {
                name.replace(before, f"text_model.encoder.layers.{last}."): torch.zeros_like(tensor)
                for name, tensor in held.items()
                if name.startswith(before)
            }
        held.pop("text_projection.weight", None)
        with without_numbers():
            tower = ClipText(width=tower.width, depth=last + 1, heads=1)
    return clip_keys.to_openclip(clip_keys.text_rows(tower), held, "model")


def _unsaid(what: str) -> InvalidInput:
    return InvalidInput(
        f"a single file has no place for {what}", where="model", do="save it in the native format"
    )
