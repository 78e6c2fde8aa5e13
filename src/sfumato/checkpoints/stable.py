"""Stable Diffusion's parts as one model: text beside sizes and pictures, latents, and who says what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.autoencoders.kl import KL
from sfumato.conditioners.depth import Depth
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.noisy_low_res import NoisyLowRes
from sfumato.conditioners.sizes import Sizes
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.spaces.latent import Latent


def describe_model(
    network: Mapping[str, Any],
    autoencoder: Mapping[str, Any] | None,
    scale: float,
    shift: float,
    towers: Sequence[Mapping[str, Any]],
    process: Any,
    prediction: str,
    zeros: bool = False,
    scored: bool = False,
    low_res: Mapping[str, Any] | None = None,
    size: Sequence[int] = (),
) -> dict[str, Any]:
    """The description of a model of latents under text, as `Model.from_description` takes it.

    What is told beside x follows from how many channels the network has more than the latents.

    Args:
        network: description of the U-Net.
        autoencoder: of the autoencoder, if it is at hand.
        scale: of the latents.
        shift: likewise.
        towers: descriptions of prompt states, one a text tower.
        process: description of what the network was trained on.
        prediction: what it outputs, by name.
        zeros: no prompt is zeros.
        scored: sizes are told with an aesthetic score: XL's refiner.
        low_res: settings of the small picture an upscaler is told.
        size: (height, width) in pixels, told where nobody says another.

    Raises:
        InvalidInput: channels or a vector that nothing here tells.
    """
    channels = network["out_channels"]
    vector = network.get("vector", 0)
    parts: list[dict[str, Any]] = [
        {
            "name": "text_clip",
            "encoders": [dict(tower) for tower in towers],
            "pooled": bool(vector),
            "zeros_for_empty": zeros,
        }
    ]
    if vector:
        pooled = towers[-1]["text"].get("projection") or towers[-1]["text"]["width"]
        numbers, rest = divmod(vector - pooled, 5 if scored else 6)
        if rest or numbers <= 0:
            raise InvalidInput(
                f"a vector of {vector}, of which the text has {pooled}, has no room for sizes",
                where="unet.config.projection_class_embeddings_input_dim",
            )
        told = {"size": list(size)} if size else {}
        parts.append({"name": "sizes", "width": numbers, "scored": scored, **told})
    extra = network["in_channels"] - channels
    if network.get("classes") and extra == 3:
        parts.append({"name": "noisy_low_res", "levels": network["classes"], **(low_res or {})})
    elif network.get("classes"):
        raise InvalidInput("a table of classes that nothing tells", where="unet.config.num_class_embeds")
    elif extra == channels + 1:
        parts.append({"name": "masked_image"})
    elif extra == 1:
        parts.append({"name": "depth"})
    elif extra:
        raise InvalidInput(f"{extra} channels beside x that nothing tells", where="unet.config.in_channels")
    space: dict[str, Any] = {
        "name": "latent",
        "channels": channels,
        "multiple": 2 ** (len(network["multipliers"]) - 1),
        "scale": scale,
        "shift": shift,
    }
    if autoencoder is not None:
        space["autoencoder"] = dict(autoencoder)
    return {
        "network": dict(network),
        "process": process,
        "prediction": prediction,
        "time_input": "index",
        "conditioner": parts[0] if len(parts) == 1 else {"name": "together", "parts": parts},
        "space": space,
    }


def tower_prefix(description: Mapping[str, Any], number: int) -> str:
    """What stands before the names of a text tower's weights in such a model."""
    held = "held.0." if description["conditioner"]["name"] == "together" else ""
    return f"conditioner.{held}towers.{number}.text."


@dataclass(frozen=True)
class Parts:
    """The parts of a model of Stable Diffusion's kind, as foreign formats hold them.

    Args:
        network: the U-Net.
        autoencoder: of the latents.
        space: the latents.
        text: what reads prompts.
        low_res: what reads a picture to enlarge, of an upscaler.
        kind: sd, xl or xl refiner.
        pipeline: diffusers' class.
    """

    network: SDUNet
    autoencoder: KL
    space: Latent
    text: TextCLIP
    low_res: NoisyLowRes | None
    kind: str
    pipeline: str

    @staticmethod
    def of(model: Model) -> Parts:
        """Those of a model.

        Raises:
            InvalidInput: another kind of model.
        """
        together = isinstance(model.conditioner, Together)
        parts: tuple[Any, ...] = model.conditioner.parts if together else (model.conditioner,)
        network, space, text = model.denoiser.network, model.space, parts[0]
        usual = model.denoiser.time_input == "index" and not model.denoiser.learned_range
        fits = isinstance(network, SDUNet) and isinstance(space, Latent) and isinstance(text, TextCLIP)
        autoencoder = getattr(space, "autoencoder", None)
        if not (usual and fits and isinstance(autoencoder, KL) and autoencoder.pack == 1):
            raise _other("this is not a latent U-Net under text of CLIP, with its autoencoder")
        beside = parts[1:]
        kind, pipeline = "sd", "StableDiffusionPipeline"
        if beside and isinstance(beside[0], Sizes):
            kind = "xl refiner" if beside[0].scored else "xl"
            pipeline = f"StableDiffusionXL{'Img2Img' * beside[0].scored}Pipeline"
            beside = beside[1:]
        names = {
            MaskedImage: pipeline.replace("Pipeline", "InpaintPipeline"),
            Depth: "StableDiffusionDepth2ImgPipeline",
            NoisyLowRes: "StableDiffusionUpscalePipeline",
        }
        if len(beside) > 1 or any(type(each) not in names for each in beside):
            raise _other(f"no such format tells {' and '.join(type(each).__name__ for each in beside)}")
        if beside:
            pipeline = names[type(beside[0])]
        low_res = beside[0] if beside and isinstance(beside[0], NoisyLowRes) else None
        assert isinstance(network, SDUNet)
        assert isinstance(space, Latent)
        for each in text.encoders:
            if kind != "sd" and (each.text.place(each.layer), each.norm) != (each.text.depth - 1, False):
                raise _other("the text is read at another layer than XL's")
            if kind == "sd" and (len(text.encoders) > 1 or not each.norm):
                raise _other("the text is read otherwise than Stable Diffusion 1 and 2 read it")
        return Parts(network, autoencoder, space, text, low_res, kind, pipeline)


def layer_of(name: str) -> int:
    """The number of the layer of a text tower that a weight is of; -1 for those of none."""
    start = "text_model.encoder.layers."
    return int(name.removeprefix(start).split(".")[0]) if name.startswith(start) else -1


def _other(what: str) -> InvalidInput:
    return InvalidInput(what, where="model", do="save it in the native format")
