"""Task: what a model is asked for, checked and laid out before any work."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sfumato.core.alone import Alone
from sfumato.core.classifier import NoisyClassifier, no_denoiser
from sfumato.core.condition import Condition
from sfumato.core.edit import Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.guidance import Guidance
from sfumato.core.noise import MAX_SEED
from sfumato.core.reverse import nested
from sfumato.generation.edits import Edited
from sfumato.generation.inputs import Record, rows_of
from sfumato.generation.memory import available, bytes_at_most, bytes_of_decoding, bytes_per_sample
from sfumato.generation.second_models import (
    Load,
    ask_more_than_the_model,
    bind,
    heeded,
    second_models,
)
from sfumato.generation.walk import Walk
from sfumato.model import Model

MAX_BATCH = 64
"""Pictures walked at once, at most."""

Rows = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Task:
    """Pictures asked of a model.

    Args:
        model: what is asked.
        walk: from noise to data.
        edited: the change of given pictures, if it is one.
        seeds: one a picture.
        size: (height, width) in pixels of what is walked.
        shape: (C, h, w) of one x.
        rows: what the model is told, one value a picture.
        unsaid: what it is steered away from, likewise; None where nothing is said of it.
        kept: what recipes say of both.
    """

    model: Model
    walk: Walk
    edited: Edited | None
    seeds: list[int]
    size: tuple[int, int]
    shape: tuple[int, ...]
    rows: dict[str, list[Any]]
    unsaid: dict[str, list[Any]] | None
    kept: list[Record]

    @staticmethod
    def of(
        model: Model,
        *,
        inputs: Mapping[str, Any],
        count: int = 1,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        sampler: Any = None,
        times: Any = None,
        guidance: Any = None,
        size: int | tuple[int, int] | None = None,
        path: Any = None,
        fast: Any = None,
        negative: Mapping[str, Any] | None = None,
        edit: Any = None,
        load: Load | None = None,
    ) -> Task:
        """From the arguments of `generate`. Raises as it does."""
        if isinstance(model.denoiser, NoisyClassifier):
            raise no_denoiser()
        if isinstance(model.denoiser, Alone):
            raise model.denoiser.refusal()
        walk = Walk.plan(model, sampler, times, guidance, steps, path, load, fast)
        given = None if size is None else _size(model, size)
        edited = None if edit is None else Edited.plan(model, edit, given)
        chosen = _seeds(count, seed, seeds)
        lists, pictures = (getattr(model.conditioner, each, ()) for each in ("lists", "pictures"))
        canvas = None if edited is None else edited.canvas
        if canvas is not None and len(canvas.image) not in (1, len(chosen)):
            raise InvalidInput(f"{len(canvas.image)} pictures for {len(chosen)}", where="edit")
        rows = rows_of(inputs, len(chosen), lists)
        others = heeded(walk.guidance, rows) - set(model.conditioner.inputs)
        _check(model, {name: values for name, values in rows.items() if name not in others})
        sides = (edited and edited.sides) or _size(model, size, rows)
        shape = model.space.shape(*sides)
        unsaid = rows_of(negative, len(chosen), lists) if negative else None
        _check(model, unsaid or {})
        # Files are looked at before the work: what is theirs later is not what the pictures were made from.
        kept = [Record.of(each, pictures) for each in (rows, unsaid) if each is not None]
        heard = rows
        if "size" in model.conditioner.inputs:
            # Of a picture edited its own size, whatever it was continued to: maps of it are continued alike.
            heard = {"size": [(edited and edited.size) or sides] * len(chosen), **rows}
        return Task(model, walk, edited, chosen, sides, shape, heard, unsaid, kept)

    @property
    def steps(self) -> int:
        """How many are walked."""
        return self.walk.steps if self.edited is None else self.edited.steps(self.walk.steps)

    def told(self, part: slice) -> tuple[Rows, Rows | None]:
        """What is said of some of the pictures, and what is steered away from."""
        unsaid = None if self.unsaid is None else {key: values[part] for key, values in self.unsaid.items()}
        return {key: values[part] for key, values in self.rows.items()}, unsaid

    def heard(self, part: slice) -> Rows:
        """What is said of some of the pictures, and what an edit says."""
        said, _ = self.told(part)
        return said if self.edited is None else {**said, **self.edited.rows(part).inputs(self.count(part))}

    def count(self, part: slice) -> int:
        """How many pictures a part is."""
        return len(self.seeds[part])

    def conditions(self, part: slice) -> tuple[Condition, Condition]:
        """What is said of some of the pictures, and its null."""
        return conditions(self.model, self.count(part), self.heard(part), self.told(part)[1])

    def turn(self, part: slice, condition: Condition) -> Turn:
        """What an edit makes of the walk of some of the pictures, which are told a condition."""
        if self.edited is None:
            return Turn()
        grid = self.walk.times(self.walk.path, self.walk.steps)
        scene = Scene(
            self.model,
            self.heard(part),
            condition,
            self.seeds[part],
            self.size,
            self.shape,
            self.walk.path,
            grid[len(grid) - 1 - self.steps :],
            self.walk.guidance,
            part,
        )
        return self.edited.rows(part).turn(scene)

    def guidance(self, part: slice, turn: Turn, measured: bool = False) -> list[Guidance]:
        """What guides some of the pictures, an edit's own outermost; `measured` as for `bind`."""
        own = [] if turn.guidance is None else [turn.guidance]
        return [*bind(self.walk.guidance, self.count(part), self.heard(part), measured), *own]

    def room(self, batch: int | None) -> int:
        """How many pictures fit the memory at once; InvalidInput where not even one does, or not all of an
        edit that has them walked together.
        """
        count = len(self.seeds)
        group = count if self.edited is not None and self.edited.together else 1
        free = int(available(self.model.device) * 0.8)
        results = self.results
        # A walk whose noise alone does not fit is refused before its network is even looked at.
        each = results if results > free else 0
        if self.edited is None and not ask_more_than_the_model(self.walk.guidance):
            most = bytes_at_most(self.model, self.shape, math.prod(self.size))
            each = each or (most if max(count, batch or 1) * most + results <= free else 0)
        if not each:
            walked = -(-self.bytes_walked(group) // group)
            decoded = bytes_of_decoding(self.model.space, self.shape) if walked + results <= free else 0
            each = max(walked, decoded)
        if each + results > free:
            raise InvalidInput(
                f"{count} of {self.size[1]} x {self.size[0]} need about "
                f"{(each + results) / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
                where="size",
                do="ask for smaller or fewer pictures",
            )
        fits = max(1, (free - results) // max(each, 1))
        if batch is not None and not 1 <= batch <= fits:
            raise InvalidInput(f"{batch} is not from 1 to {fits}, what fits the memory", where="batch")
        limit = int(min(count, fits, batch or MAX_BATCH))
        if limit < group:
            raise InvalidInput(
                f"the {group} pictures of this edit are walked together, not {limit} at once",
                where="batch",
                do="ask for fewer or smaller ones",
            )
        return limit

    @property
    def results(self) -> int:
        """Bytes of all the pictures made."""
        return 4 * self.model.space.image_channels * math.prod(self.size) * len(self.seeds)

    def bytes_walked(self, count: int) -> int:
        """Peak bytes of walking so many of the pictures, weights not counted."""
        part = slice(count)
        condition, null = self.conditions(part)
        turn = self.turn(part, condition)
        plan = nested(turn.plan, self.walk.hooks(self.model.denoiser.network))
        if plan is not None:
            hooks = plan(self.walk.path(float(self.walk.times(self.walk.path, self.walk.steps)[0])))
            condition = replace(condition, hooks=hooks)
        guidance = self.guidance(part, turn, measured=True)
        return bytes_per_sample(self.model.denoiser, guidance, self.shape, condition, null, count)


def conditions(model: Model, count: int, said: Rows, unsaid: Rows | None) -> tuple[Condition, Condition]:
    """What a model is told of so many pictures, and its null."""
    heeded = {name: values for name, values in said.items() if name in model.conditioner.inputs}
    condition = model.conditioner(count, **heeded)
    if unsaid is None:
        return condition, model.conditioner.null(condition)
    # A picture to enlarge is no matter of opinion: what cannot be unsaid is said on both sides.
    kept = {name: heeded[name] for name in getattr(model.conditioner, "kept", ()) if name in heeded}
    denied = getattr(model.conditioner, "denied", {})
    return condition, model.conditioner(count, **{**kept, **denied, **unsaid})


@contextmanager
def evaluating(task: Task) -> Iterator[None]:
    """Dropout and its like are off meanwhile; modules already so are not touched, as threads share them."""
    models = (task.model, *second_models(task.walk.guidance))
    parts = [part for model in models for part in model.modules().values()]
    training = [m for part in parts for m in part.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def precision(model: Model) -> Any:
    """x stays float32; a network of half precision computes in its own."""
    dtype = dtype_of(model.denoiser)
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype if half else torch.bfloat16, enabled=half)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The element type of a module's weights."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _size(
    model: Model, size: int | Sequence[int] | None, rows: Mapping[str, list[Any]] | None = None
) -> tuple[int, int]:
    """As asked; else that of a picture or map the model is told, in sides it takes; else the card's."""
    given = size
    if given is None and rows and (told := getattr(model.conditioner, "size_of", None)):
        own = told(**{name: values for name, values in rows.items() if name in model.conditioner.inputs})
        given = own and tuple(side + -side % model.space.step for side in own)
    given = given if given is not None else model.card.get("size")
    if given is None:
        raise InvalidInput("the model's card names no size", where="size", do="give (height, width)")
    pair = (given, given) if isinstance(given, int) else tuple(given)
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise InvalidInput(f"{given!r} is not a height and a width in pixels", where="size")
    return pair[0], pair[1]


def _seeds(count: int, seed: int | None, seeds: Sequence[int] | None) -> list[int]:
    if seeds is not None:
        chosen = [int(each) for each in seeds]
        if seed is not None or count not in (1, len(chosen)):
            raise InvalidInput("give either seeds, one a picture, or seed and count", where="seeds")
    else:
        if type(count) is not int or count < 1:
            raise InvalidInput(f"{count!r} is not a whole number of at least 1", where="count")
        first = secrets.randbelow(2**32) if seed is None else seed
        chosen = [first + i for i in range(count)]
    if not chosen or min(chosen) < 0 or max(chosen) > MAX_SEED:
        raise InvalidInput("seeds are whole numbers from 0 to 2^63 - 1", where="seed")
    return chosen


def _check(model: Model, rows: Mapping[str, list[Any]]) -> None:
    model.conditioner.check(**{name: [v for v in values if v is not None] for name, values in rows.items()})
