"""A model joined with a control of image tokens: an adapter for image prompts, or boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from sfumato.checkpoints.controlled import joined_card
from sfumato.conditioners.grounding import Grounding
from sfumato.conditioners.image_clip import ImageCLIP
from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.together import Together, parts_of
from sfumato.control.gligen import Gligen
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
    return _joined(model, part, seen, [adapter, encoder])


def grounded(model: Model, control: Model | Gligen, objects: int | None = None) -> Model:
    """The model with a control that is told boxes, as GLIGEN is.

        model = grounded(load("v1-4.safetensors"), load("runs/boxes"))
        generate(model, prompt="a cat", boxes=[{"label": "a cat", "box": [0.1, 0.5, 0.4, 0.4]}])

    The parts are shared and not copied. The words of a box are read by the model's own text part.

    Args:
        model: with a latent U-Net under text.
        control: loaded alone, or with the model that it was trained in, or built.
        objects: room for so many in a picture; as the control's model has it, or 30 as published ones.

    Raises:
        InvalidInput: parts that are none of these, or do not fit each other.
    """
    if isinstance(model.denoiser, Alone):
        raise InvalidInput("this is a part alone, which nothing steers", where="grounded.model")
    trained = has_boxes(control)
    if trained is not None and objects is None and isinstance(control, Model):
        told = parts_of(control.conditioner)
        objects = next((each.objects for each in told if isinstance(each, Grounding)), None)
    part = trained or _part(control, Guide, Gligen, "control", "grounded")
    return _joined(model, part, Grounding(objects or 30), [control])


def has_boxes(model: Any) -> Gligen | None:
    """The control of boxes of a model that has one, or is one alone."""
    if not isinstance(model, Model):
        return None
    network: Any = model.denoiser.network
    if isinstance(model.denoiser, Alone):
        return network if isinstance(network, Gligen) else None
    inner = network.network if isinstance(network, Controlled) else network
    return inner.control if isinstance(inner, Hooked) and isinstance(inner.control, Gligen) else None


def _joined(model: Model, control: Any, conditioner: Any, cards: list[Any]) -> Model:
    """The model with a control of image tokens, and what says these."""
    network: Any = model.denoiser.network
    inner = network.network if isinstance(network, Controlled) else network
    if isinstance(inner, Hooked):
        raise InvalidInput("this model has a control that takes image tokens already", where="model")
    training = network.training
    whole = Hooked(inner, control)
    # Controls of hints stand outside, so that they are not shown the picture.
    network = replace(network, network=whole) if isinstance(network, Controlled) else whole
    own = model.denoiser
    denoiser = NetworkDenoiser(network, own.process, own.prediction, own.time_input, own.learned_range)
    denoiser.train(training)
    others = tuple(each for each in parts_of(model.conditioner) if not isinstance(each, Nothing))
    together: Any = Together((*others, conditioner)) if others else conditioner
    together.train(getattr(model.conditioner, "training", False)).to(model.device)
    return Model(denoiser, together, model.space, joined_card(model, cards))


def _part(given: Any, alone: type[Alone], kind: type[nn.Module], name: str, of: str = "prompted") -> Any:
    """A part, of what was loaded or built."""
    held = given.denoiser.network if isinstance(given, Model) and isinstance(given.denoiser, alone) else given
    if not isinstance(held, kind):
        raise InvalidInput(f"this is no {kind.__name__} alone", where=f"{of}.{name}")
    return held
