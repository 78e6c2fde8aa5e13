"""A model joined with an adapter for image prompts, however either was loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sfumato.checkpoints.controlled import joined_card
from sfumato.conditioners.image_clip import ImageCLIP
from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.together import Together
from sfumato.control.ip_adapter import IPAdapter
from sfumato.core.alone import Alone, Guide, Reader
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip_image import ClipImage
from sfumato.model import Model
from sfumato.networks.controlled import Controlled
from sfumato.networks.hooked import Hooked


def prompted(model: Model, adapter: Model | IPAdapter, encoder: Model | ClipImage) -> Model:
    """The model with an adapter for image prompts: `generate(model, prompt=..., image_prompt=picture)`.

        model = prompted(load("v1-5.safetensors"), load("ip-adapter_sd15.safetensors"), load("image_encoder"))

    The parts are shared and not copied. How strongly a picture is heeded is the input image_strength, 1 if
    not said; with 0 the model is as it was. Controls of hints may be joined before or after.

    Args:
        model: with a latent U-Net under text.
        adapter: loaded alone, or built.
        encoder: CLIP's image tower the adapter was trained with, loaded alone or built.

    Raises:
        InvalidInput: parts that are none of these, or do not fit each other.
    """
    if isinstance(model.denoiser, Alone):
        raise InvalidInput("this is a part alone, which nothing steers", where="prompted.model")
    part = _part(adapter, Guide, IPAdapter, "adapter")
    tower = _part(encoder, Reader, ClipImage, "encoder")
    seen = ImageCLIP(tower, part.states).eval()
    if seen.width != part.seen:
        raise InvalidInput(
            f"an adapter of {part.seen} numbers for a tower of {seen.width}",
            where="prompted.encoder",
            do="give the tower the adapter was trained with",
        )
    network: Any = model.denoiser.network
    inner = network.network if isinstance(network, Controlled) else network
    if isinstance(inner, Hooked):
        raise InvalidInput(
            "this model has an adapter that takes image tokens already", where="prompted.model"
        )
    training = network.training
    whole = Hooked(inner, part)
    # Controls of hints stand outside, so that they are not shown the picture.
    network = replace(network, network=whole) if isinstance(network, Controlled) else whole
    own = model.denoiser
    denoiser = NetworkDenoiser(network, own.process, own.prediction, own.time_input, own.learned_range)
    denoiser.train(training)
    given = model.conditioner
    parts = given.parts if isinstance(given, Together) else (given,)
    others = tuple(each for each in parts if not isinstance(each, Nothing))
    conditioner: Any = Together((*others, seen)) if others else seen
    conditioner.to(model.device)
    return Model(denoiser, conditioner, model.space, joined_card(model, [adapter, encoder]))


def _part(given: Any, alone: type[Alone], kind: type[nn.Module], name: str) -> Any:
    """A part, of what was loaded or built."""
    held = given.denoiser.network if isinstance(given, Model) and isinstance(given.denoiser, alone) else given
    if not isinstance(held, kind):
        raise InvalidInput(f"this is no {kind.__name__} alone", where=f"prompted.{name}")
    return held
