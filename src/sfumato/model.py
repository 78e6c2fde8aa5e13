"""Model: a denoiser with all that its weights need to be used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sfumato.core.alone import ALONE, Alone
from sfumato.core.classifier import NoisyClassifier
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.core.space import Space
from sfumato.registry import build, describe

MAX_TENSORS = 5_120
"""Most weights, counted as tensors, that a model may have; the largest of today have some three thousand."""


class Conditioner(nn.Module):
    """The contract of conditioners/: raw inputs to a Condition, and its null.

    `inputs` names the keyword arguments it understands.
    """

    inputs: tuple[str, ...]

    def forward(self, count: int, **inputs: Any) -> Condition:
        """A Condition of `count` rows; a missing input means nothing is said."""
        raise NotImplementedError

    def null(self, condition: Condition) -> Condition:
        """The condition that says nothing, row for row."""
        raise NotImplementedError


@dataclass
class Model:
    """A denoiser, what turns inputs into conditions, the space it works in, and its card.

    Args:
        denoiser: the network with its process and prediction; or, standing in its place, a NoisyClassifier or
            a part alone.
        conditioner: raw inputs → Condition.
        space: pictures ↔ x.
        card: default settings that travel with the weights: {"sampler": {...}, "times": {...}, "steps": 30,
            "guidance": [...], "size": [64, 64]}, and what the weights are (data, licence, metrics, hash).
    """

    denoiser: NetworkDenoiser
    conditioner: Any
    space: Space
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Not as their child, whose weights would be saved twice.
        if isinstance(self.conditioner, nn.Module):
            for part in self.conditioner.modules():
                if callable(bind := getattr(part, "bind", None)):
                    bind(self.space)

    @property
    def process(self) -> Process:
        """What the network was trained on."""
        return self.denoiser.process

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def modules(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by the prefix they are saved under."""
        parts = {"network": self.denoiser.network, "conditioner": self.conditioner, "space": self.space}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def to(self, *args: Any, **kwargs: Any) -> Model:
        """Move or cast all weights, as nn.Module.to does."""
        for part in self.modules().values():
            part.to(*args, **kwargs)
        return self

    def describe(self) -> dict[str, Any]:
        """The parts as plain data; `from_description` builds the same model from it, without weights."""
        if isinstance(self.denoiser, Alone):
            return {self.denoiser.kind: describe(self.denoiser.network)}
        says: dict[str, Any] = {"time_input": self.denoiser.time_input}
        if isinstance(self.denoiser, NoisyClassifier):
            says = {"classifies": self.denoiser.classifies, **says}
        else:
            says = {"prediction": describe(self.denoiser.prediction), **says}
            says["learned_range"] = self.denoiser.learned_range
        return {
            "network": describe(self.denoiser.network),
            "process": describe(self.denoiser.process),
            **says,
            "conditioner": describe(self.conditioner),
            "space": describe(self.space),
        }

    @staticmethod
    def from_description(settings: dict[str, Any], card: dict[str, Any] | None = None) -> Model:
        """A model with fresh weights from the dictionary `describe` gives.

        With `classifies`, the input whose words are the classes, in place of `prediction` it is a classifier;
        of an `autoencoder` or an `encoder` alone, that.
        """
        with _bounded():
            return Model._described(settings, card)

    @staticmethod
    def _described(settings: dict[str, Any], card: dict[str, Any] | None) -> Model:
        if (kind := next((each for each in ALONE if each in settings), None)) is not None:
            part = ALONE[kind](build(kind, settings[kind]))
            sides = {"channels": "in_channels", "multiple": "factor"}
            pixels = {
                key: getattr(part.network, name) for key, name in sides.items() if hasattr(part.network, name)
            }
            space = build("space", {"name": "pixel", **pixels})
            return Model(part, build("conditioner", "nothing"), space, dict(card or {}))
        network, process = build("network", settings["network"]), build("process", settings["process"])
        conditioner = build("conditioner", settings.get("conditioner", "nothing"))
        space = build("space", settings.get("space", "pixel"))
        time_input = settings.get("time_input", "index")
        denoiser: NetworkDenoiser
        if (classifies := settings.get("classifies")) is not None:
            if tuple(conditioner.inputs) != (classifies,):
                raise InvalidInput(
                    f"a classifier of {classifies!r} heeds that input alone", where="model.conditioner"
                )
            denoiser = NoisyClassifier(network, process, classifies, time_input)
        else:
            prediction = build("prediction", settings["prediction"])
            learned_range = settings.get("learned_range", False)
            denoiser = NetworkDenoiser(network, process, prediction, time_input, learned_range)
        return Model(denoiser, conditioner, space, dict(card or {}))


@contextmanager
def _bounded() -> Iterator[None]:
    """Building stops where a description, which may be anybody's, asks for layers without end."""
    count, thread = 0, threading.get_ident()

    def note(module: nn.Module, name: str, weight: nn.Parameter) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MAX_TENSORS:
            raise InvalidInput(f"asks for more than {MAX_TENSORS:,} tensors of weights", where="model")

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()
