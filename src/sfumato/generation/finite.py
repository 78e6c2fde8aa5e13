"""Where NaN or infinity first appears in a walk, found by walking it again with every module watched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import NotFinite
from sfumato.core.guidance import Guidance
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, StepEvent, sample
from sfumato.model import Model


def find_non_finite(
    model: Model,
    guidance: Sequence[Guidance],
    sampler: Sampler,
    reverse: ReverseProcess,
    null: Condition,
    x: Tensor,
    times: Tensor,
) -> NotFinite:
    """The error that names the step and the first module whose output is not finite.

    Walks are deterministic, so the second one fails as the first did.

    Args:
        model: whose network is watched (a copy sharing its weights, so that other threads see no hooks).
        guidance: as applied to the model's denoiser.
        sampler: as walked with.
        reverse: as walked; its denoiser is replaced by the watched one.
        null: the null condition.
        x: where the walk started.
        times: where it went.
    """
    for name, told in (("condition", reverse.condition), ("null condition", null)):
        if not _finite(
            [getattr(told, slot) for slot in ("vector", "tokens", "channels", "draft", "image_tokens")]
        ):
            return NotFinite("the conditioner made NaN or infinity", where=name)
    steps = len(times) - 1
    step = 0

    def place() -> str:
        return f"step {step + 1} of {steps}"

    def watch(name: str) -> Any:
        def look(module: torch.nn.Module, given: Any, output: Any) -> None:
            if not _finite(tree_leaves(output)):
                raise NotFinite(f"NaN or infinity at {place()}", where=name, do=_ADVICE)

        return look

    own = model.denoiser
    held: list[Any] = [*own.parameters(), *own.buffers()]
    watched: NetworkDenoiser = copy.deepcopy(own, {id(tensor): tensor for tensor in held})
    for name, module in watched.network.named_modules(prefix="network"):
        module.register_forward_hook(watch(name))
    denoiser: Any = watched
    for each in guidance:
        denoiser = each(denoiser, null)

    def check(event: StepEvent) -> None:
        nonlocal step
        if not _finite([event.x]):
            raise NotFinite(f"NaN or infinity at {place()}", where="sampler or guidance", do=_ADVICE)
        step = event.index + 1

    try:
        end = sample(sampler, replace(reverse, denoiser=denoiser), x, times, check)
    except NotFinite as found:
        return found
    if _finite([model.space.decode(end)]):
        return NotFinite(
            "NaN or infinity once, but not when walked again", where="device", do="check its memory"
        )
    return NotFinite("NaN or infinity while decoding", where="space", do=_ADVICE)


_ADVICE = "try float32 weights, or less guidance"


def _finite(values: Sequence[Any]) -> bool:
    numbers = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    return all(bool(torch.isfinite(v).all()) for v in numbers)
