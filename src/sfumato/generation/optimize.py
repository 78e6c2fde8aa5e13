"""Optimize: a model made faster for good, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sfumato.core.acceleration import Acceleration
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.generation.memory import estimate_on_meta
from sfumato.generation.second_models import Load
from sfumato.generation.task import Task, evaluating
from sfumato.model import Model
from sfumato.registry import describe, is_named


def optimize(
    model: Model,
    /,
    fast: Any = "lossless",
    *,
    count: int = 1,
    size: int | tuple[int, int] | None = None,
    guidance: Any = None,
    load: Load | None = None,
    **inputs: Any,
) -> Model:
    """The same model, faster: what has to be prepared is, once, and the rest is its default from now on.

    It draws whatever the model does, and is quickest for pictures like those told of here. The model given is
    not changed, and shares its weights with the result.

    Args:
        model: what to make faster.
        fast: a preset ("lossless", "int8", "balanced", "draft"), or one or several accelerations.
        count: pictures that will be walked at once.
        size: their (height, width) in pixels; as the card says.
        guidance: as the card says; what asks for two estimates at once doubles what layers are given.
        load: as for `generate`.
        inputs: what it will be told, where that decides what is computed: a hint for a control.

    Raises:
        InvalidInput, NotFound: as `generate`, and where the network has no place for an acceleration.
    """
    task = Task.of(
        model,
        count=count,
        seed=0,
        guidance=guidance,
        size=size,
        fast=fast,
        load=load,
        inputs=inputs,
    )
    with evaluating(task):
        made = prepared(task, count)
        task.walk.hooks(made.denoiser.network)
    hooked = [each for each in task.walk.fast if type(each).plan is not Acceleration.plan]
    rest = [describe(each) if is_named(each) else each for each in hooked]
    return replace(made, card={**made.card, "fast": rest})


def prepared(task: Task, together: int) -> Model:
    """A task's model, as its accelerations prepare it for so many pictures at once."""
    model, part = task.model, slice(together)
    preparing: Sequence[Acceleration] = [
        each for each in task.walk.fast if type(each).prepare is not Acceleration.prepare
    ]
    if not preparing:
        return model
    condition, null = task.conditions(part)
    guidance = task.guidance(part, task.turn(part, condition), measured=True)
    own = model.denoiser
    network: nn.Module = own.network
    space: Any = model.space

    def with_network(network: nn.Module) -> NetworkDenoiser:
        made = NetworkDenoiser(network, own.process, own.prediction, own.time_input, own.learned_range)
        made.training = own.training
        return made

    def estimate(network: nn.Module) -> None:
        estimate_on_meta(with_network(network), guidance, task.shape, condition, null, task.count(part))

    def decode(space: Any) -> None:
        space.decode(torch.empty(1, *task.shape, device="meta"))

    for each in preparing:
        network = each.prepare(network, estimate)
        space = each.prepare(space, decode) if isinstance(space, nn.Module) else space
    if network is own.network and space is model.space:
        return model
    return replace(model, denoiser=with_network(network), space=space)
