"""Null-text: what to say in place of nothing, so that a picture inverted comes out right under guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.edit import Canvas
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.sampler import move
from sfumato.editing.inverted import Inversion, is_first_order, together
from sfumato.generation.second_models import bind
from sfumato.generation.task import Task, evaluating, precision
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.model import Model

LEARNT = ("tokens", "vector")
"""Slots of a null that are sought."""


def null_text(
    found: Inversion,
    scale: float = 7.5,
    *,
    inner: int = 10,
    rate: float = 1e-2,
    enough: float = 1e-5,
    batch: int | None = None,
) -> Inversion:
    """Nulls, one for each step, under which a guided walk follows the way an inversion came up.

    From the noise on, with x̄_T = x_T, each step i of N seeks the tokens and the vector of the null,

        null_i = argmin |x_s - step(x̄_t; null + scale · (condition - null))|²,

    from null_{i-1} by `inner` iterations of Adam at rate · (1 - i / 2N), and goes down by what was found. A
    row is done when its mean square is below enough · (1 + 100 i / N). With N = 50 these are the published
    numbers. Of all that was tried in a step the best is kept, so that none ends worse than it began. Other
    guidance of the model's card stays as it is; the network's weights are not touched.

    Mokady, Hertz, Aberman, Pritch & Cohen-Or 2022, "Null-text Inversion for Editing Real Images using Guided
    Diffusion Models", arXiv:2211.09794, algorithm 1.

    Args:
        found: what `invert` found of guidance 1.
        scale: of the guidance that pictures are made again with.
        inner: iterations a step.
        rate: of learning, in the first step.
        enough: when a row is done, in the first step.
        batch: pictures at once.

    Raises:
        InvalidInput: a null that has neither tokens nor a vector, a scale of 1, or a walk of another sampler.
    """
    if scale == 1:
        raise InvalidInput("guidance of scale 1 asks no null", where="null_text.scale")
    if inner < 1 or not rate > 0:
        raise InvalidInput("are to be above 0", where="null_text.inner, rate")
    settings = {**found.settings, "guidance": scale, "negative": None}
    task, parts = task_of(found.model, found.image, settings, found.said), []
    if not is_first_order(task.walk.sampler):
        raise InvalidInput(
            f"follows steps of ddim or euler, and this was found of {type(task.walk.sampler).__name__}",
            where="null_text",
        )
    with evaluating(task), torch.inference_mode(False), torch.enable_grad(), precision(found.model):
        limit = task.room(batch)
        for start in range(0, len(found), limit):
            part = slice(start, start + limit)
            parts.append(_Search(task, part, found[part]).nulls(inner, rate, enough))
    nulls = tuple(together(each) for each in zip(*parts, strict=True))
    return replace(found, nulls=nulls, settings=settings)


def prompt_as_null(found: Inversion, scale: float = 7.5) -> Inversion:
    """Negative-prompt inversion: what the picture shows stands for saying nothing.

    Said again the picture's own words guide nowhere, whatever the scale, and it comes out as of guidance 1;
    other words guide away from what the picture shows. A good part of null-text at no cost.

    Miyake, Iohara, Saito & Tanaka 2023, "Negative-prompt Inversion: Fast Image Inversion for Editing with
    Text-guided Diffusion Models", arXiv:2305.16807.

    Args:
        found: what `invert` found of guidance 1.
        scale: of the guidance that pictures are made with.
    """
    task = task_of(found.model, found.image, found.settings, found.said)
    with evaluating(task):
        said = task.conditions(slice(len(found)))[0]
    nulls = (said.map(torch.clone),) * (len(found.times) - 1)
    return replace(found, nulls=nulls, settings={**found.settings, "guidance": scale, "negative": None})


class _Search:
    """The nulls of some pictures, step by step."""

    def __init__(self, task: Task, part: slice, found: Inversion) -> None:
        condition, null = task.conditions(part)
        # Copies, as what is made in inference mode can be no part of a gradient.
        self.condition, self.null = condition.map(torch.clone), null.map(torch.clone)
        self.names = [name for name in LEARNT if getattr(self.null, name) is not None]
        if not self.names:
            raise InvalidInput("this model's null has neither tokens nor a vector", where="null_text")
        self.found, self.denoiser = found, found.model.denoiser
        self.guidance = bind(task.walk.guidance, task.count(part), task.heard(part))
        plain = [each for each in self.guidance if isinstance(each, ClassifierFree) and each.channels is None]
        self.scale = plain[0].scale if len(plain) == len(self.guidance) == 1 else None

    def nulls(self, inner: int, rate: float, enough: float) -> list[Condition]:
        found, chosen = self.found, []
        x = found.noise.clone().to(found.model.device)
        steps = len(found.times) - 1
        for i, (t, s) in enumerate(pairwise(found.times)):
            here, there = found.path(float(t)), found.path(float(s))
            target = found.trajectory[i + 1].clone().to(x)
            x = self._step(
                x, target, here, there, inner, rate * (1 - i / (2 * steps)), enough * (1 + 100 * i / steps)
            )
            chosen.append(self.null)
        return chosen

    def _step(
        self,
        x: Tensor,
        target: Tensor,
        here: Level[float],
        there: Level[float],
        inner: int,
        rate: float,
        enough: float,
    ) -> Tensor:
        """x after the step, of the best null found, which is kept."""
        learnt = {name: getattr(self.null, name).detach().clone() for name in self.names}
        best = {name: value.clone() for name, value in learnt.items()}
        least = torch.full((len(x),), torch.inf, device=x.device)
        end = x
        optimizer = torch.optim.Adam([value.requires_grad_() for value in learnt.values()], lr=rate)
        with torch.no_grad():
            said = None if self.scale is None else self.denoiser(x, here, self.condition).x0
        for turn in range(inner + 1):
            with torch.set_grad_enabled(turn < inner):
                x_s = move(x, self._guided(x, here, replace(self.null, **learnt), said), here, there)
                loss = (x_s - target).square().flatten(1).mean(1)
            going = least > enough
            better = (loss.detach() < least) & going
            for name, value in learnt.items():
                best[name] = torch.where(_column(better, value), value.detach(), best[name])
            end = torch.where(_column(better, x), x_s.detach(), end)
            least = torch.where(better, loss.detach(), least)
            if turn == inner or not bool((least > enough).any()):
                break
            # The weights of the network, which may be trained elsewhere, gather no gradients of this.
            slopes = torch.autograd.grad(loss.sum(), list(learnt.values()), allow_unused=True)
            for value, slope in zip(learnt.values(), slopes, strict=True):
                value.grad = torch.zeros_like(value) if slope is None else slope
            optimizer.step()
        self.null = replace(self.null, **best)
        return end

    def _guided(self, x: Tensor, level: Level[float], null: Condition, said: Tensor | None) -> Tensor:
        """The guided estimate; of plain guidance what the words alone say was asked before."""
        if said is not None:
            assert self.scale is not None
            return torch.lerp(self.denoiser(x, level, null).x0, said, self.scale)
        denoiser: Any = self.denoiser
        for each in self.guidance:
            denoiser = each(denoiser, null)
        return denoiser(x, level, self.condition).x0


def task_of(model: Model, image: Tensor, settings: Mapping[str, Any], said: Mapping[str, Any]) -> Task:
    """Making as many and as large pictures as some given (R, C, H, W), checked as `generate` does."""
    sides = Canvas(image[:1]).padded(model.space.step).image.shape[2:]
    size = (sides[0], sides[1])
    return Task.of(model, count=len(image), seed=0, seeds=None, size=size, edit=None, inputs=said, **settings)


def _column(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (x.ndim - 1))
