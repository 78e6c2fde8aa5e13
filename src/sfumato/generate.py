"""Generate: from a model and what it is told to pictures, each with the recipe that makes it again."""

from __future__ import annotations

import math
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import __version__
from sfumato.core.classifier import NoisyClassifier, no_denoiser
from sfumato.core.coder import Coder, no_pictures
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import MAX_SEED, Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Observe, StepEvent, sample
from sfumato.edits import Edited
from sfumato.finite import find_non_finite
from sfumato.images import Images
from sfumato.inputs import Record, rows_of
from sfumato.memory import available, bytes_per_sample
from sfumato.model import Model
from sfumato.second_models import Load, bind, heeded, second_models
from sfumato.walk import Walk

MAX_BATCH = 64
"""Pictures walked at once, at most."""


@dataclass(frozen=True)
class Progress(StepEvent):
    """One step of one batch: which batch of how many it was, beside what StepEvent tells."""

    batch: int
    batches: int

    @property
    def done(self) -> float:
        """Part of all the work that is done, 0 to 1."""
        return (self.batch + (self.index + 1) / self.steps) / self.batches


def generate(
    model: Model,
    *,
    count: int = 1,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    sampler: Any = None,
    times: Any = None,
    guidance: Any = None,
    size: int | tuple[int, int] | None = None,
    path: Any = None,
    negative: Mapping[str, Any] | None = None,
    edit: Any = None,
    batch: int | None = None,
    film: int = 0,
    observe: Observe | None = None,
    load: Load | None = None,
    **inputs: Any,
) -> Images:
    """Generate pictures; what is not said is as the model's card says, else as walk.DEFAULTS.

    Parts (sampler, times, guidance, path) are objects, names, or dictionaries as `describe` gives them; the
    recipe says when some are the caller's own, such as a function (denoiser, null) → denoiser for a guidance.
    Picture i has seed + i, and is the same alone or in a batch, up to the rounding of the arithmetic.

    Args:
        model: what to ask.
        count: how many pictures.
        seed: of the first picture; drawn at random if not said, and told in the result.
        seeds: one a picture, instead of seed.
        steps: of the walk.
        sampler: how to walk.
        times: where the steps lie.
        guidance: a scale for classifier-free guidance, beside what else the card does; or one or several
            guidances, applied in order, instead of the card's.
        size: (height, width) in pixels, or one number for both; of an edit's pictures their own if not said.
        path: the process to walk along, if not the one the network was trained on.
        negative: inputs to steer away from, in place of saying nothing.
        edit: a change of given pictures (image_to_image, inpaint, outpaint), to start from in place of noise.
        batch: pictures walked at once; as many as fit the memory if not said.
        film: so many frames of each picture appearing are kept.
        observe: called after every step with a Progress; raising from it stops the work.
        load: reads a second model that a guidance names by its path, such as a classifier.
        inputs: what the model is told, by the names of its conditioner, and the classes that a classifier is
            to see; one value for all pictures, or a list with one for each.

    Raises:
        InvalidInput: a setting or input that makes no sense, or more memory than there is, before any work.
        NotFinite: the result holds NaN or infinity; the step and the module are named.
    """
    if isinstance(model.denoiser, NoisyClassifier):
        raise no_denoiser()
    if isinstance(model.denoiser, Coder):
        raise no_pictures()
    walk = Walk.plan(model, sampler, times, guidance, steps, path, load)
    edited = None if edit is None else Edited.plan(model, edit, None if size is None else _size(model, size))
    height, width = _size(model, size) if edited is None else edited.sides
    shape = model.space.shape(height, width)
    chosen = _seeds(count, seed, seeds)
    lists, pictures = (getattr(model.conditioner, each, ()) for each in ("lists", "pictures"))
    if edited is not None and len(edited.canvas.image) not in (1, len(chosen)):
        raise InvalidInput(f"{len(edited.canvas.image)} pictures for {len(chosen)}", where="edit")
    rows = rows_of(inputs, len(chosen), lists)
    others = heeded(walk.guidance, rows) - set(model.conditioner.inputs)
    _check(model, {name: values for name, values in rows.items() if name not in others})
    null_rows = rows_of(negative, len(chosen), lists) if negative else None
    _check(model, null_rows or {})
    # Files are looked at before the work: what is theirs later is not what the pictures were made from.
    kept = [Record.of(each, pictures) for each in (rows, null_rows) if each is not None]
    heard = rows
    if "size" in model.conditioner.inputs:
        heard = {"size": [(height, width)] * len(chosen), **rows}
    with torch.inference_mode(), _evaluating(model, *second_models(walk.guidance)):
        told = heard if edited is None else {**heard, **edited.rows(slice(1)).inputs(1)}
        limit = _limit(model, walk, shape, told, null_rows, len(chosen), batch)
        steps = walk.steps if edited is None else edited.steps(walk.steps)
        starts = range(0, len(chosen), limit)
        made, frames, recipes = [], [], []
        for number, start in enumerate(starts):
            part = slice(start, start + limit)
            said = {key: values[part] for key, values in rows.items()}
            unsaid = None if null_rows is None else {key: values[part] for key, values in null_rows.items()}
            change = None if edited is None else edited.rows(part)
            keep = _Film(film, steps, walk.path, model, observe, number, len(starts))
            hears = {key: values[part] for key, values in heard.items()}
            made.append(_batch(model, walk, shape, chosen[part], hears, unsaid, change, keep))
            frames.extend(keep.strip())
            size_ = (height, width) if change is None else change.size
            told_of = [each.part(part) for each in kept]
            recipes.extend(_recipes(model, walk, size_, chosen[part], told_of, change))
    return Images(torch.cat(made), tuple(recipes), torch.cat(frames) if frames else None)


def _size(model: Model, size: int | Sequence[int] | None) -> tuple[int, int]:
    given = size if size is not None else model.card.get("size")
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


def _conditions(
    model: Model, count: int, said: Mapping[str, list[Any]], unsaid: Mapping[str, list[Any]] | None
) -> tuple[Condition, Condition]:
    heeded = {name: values for name, values in said.items() if name in model.conditioner.inputs}
    condition = model.conditioner(count, **heeded)
    if unsaid is None:
        return condition, model.conditioner.null(condition)
    # A picture to enlarge is no matter of opinion: what cannot be unsaid is said on both sides.
    kept = {name: heeded[name] for name in getattr(model.conditioner, "kept", ()) if name in heeded}
    return condition, model.conditioner(count, **{**kept, **unsaid})


def _limit(
    model: Model,
    walk: Walk,
    shape: tuple[int, ...],
    rows: Mapping[str, list[Any]],
    null_rows: Mapping[str, list[Any]] | None,
    count: int,
    batch: int | None,
) -> int:
    """How many pictures fit the memory at once; InvalidInput where not even one does."""
    first = {key: values[:1] for key, values in rows.items()}
    unsaid = None if null_rows is None else {key: values[:1] for key, values in null_rows.items()}
    free = int(available(model.device) * 0.8)
    results = 4 * math.prod(shape) * count
    # A walk whose noise alone does not fit is refused before its network is even looked at.
    each = results if results > free else 0
    if not each:
        guidance = bind(walk.guidance, 1, first, measured=True)
        each = bytes_per_sample(model.denoiser, guidance, shape, *_conditions(model, 1, first, unsaid))
    if each + results > free:
        raise InvalidInput(
            f"{count} of {shape[2]} x {shape[1]} need about {(each + results) / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free",
            where="size",
            do="ask for smaller or fewer pictures",
        )
    fits = max(1, (free - results) // max(each, 1))
    if batch is not None and not 1 <= batch <= fits:
        raise InvalidInput(f"{batch} is not from 1 to {fits}, what fits the memory", where="batch")
    return int(min(count, fits, batch or MAX_BATCH))


def _batch(
    model: Model,
    walk: Walk,
    shape: tuple[int, ...],
    seeds: list[int],
    said: Mapping[str, list[Any]],
    unsaid: Mapping[str, list[Any]] | None,
    edited: Edited | None,
    observe: Observe,
) -> Tensor:
    if edited is not None:
        said = {**said, **edited.inputs(len(seeds))}
    condition, null = _conditions(model, len(seeds), said, unsaid)
    denoiser: Any = model.denoiser
    guidance = bind(walk.guidance, len(seeds), said)
    for each in guidance:
        denoiser = each(denoiser, null)
    reverse = ReverseProcess(denoiser, walk.path, condition, Noise(seeds))
    grid = walk.times(walk.path, walk.steps)
    with _precision(model):
        if edited is None:
            x = reverse.prior((len(seeds), *shape), float(grid[0])).to(model.device)
        else:
            denoiser, x, grid = edited.begin(model, denoiser, walk, grid, reverse.source)
            reverse = replace(reverse, denoiser=denoiser)
        end = sample(walk.sampler, reverse, x, grid, observe)
        # Looked at once, at the end: a step costs nothing, and the walk is the same the second time.
        if not bool(torch.isfinite(end).all()):
            raise find_non_finite(model, guidance, walk.sampler, reverse, null, x, grid)
        image = model.space.decode(end).float().cpu()
        if not bool(torch.isfinite(image).all()):
            raise find_non_finite(model, guidance, walk.sampler, reverse, null, x, grid)
    return image if edited is None else edited.finish(image)


class _Film:
    """Passes steps on with the batch they belong to, and keeps some frames: x at unit scale, decoded."""

    def __init__(
        self,
        frames: int,
        steps: int,
        path: Process,
        model: Model,
        observe: Observe | None,
        batch: int,
        batches: int,
    ) -> None:
        if frames < 0 or frames > steps:
            raise InvalidInput(f"{frames} frames of {steps} steps", where="film", do="ask for fewer")
        self.kept: list[Tensor] = []
        self.at = {round((i + 1) * steps / frames) - 1 for i in range(frames)}
        self.path, self.model, self.observe = path, model, observe
        self.batch, self.batches = batch, batches

    def __call__(self, event: StepEvent) -> None:
        if event.index in self.at:
            self.kept.append(self.model.space.decode(event.x / self.path(event.s).norm).float().cpu())
        if self.observe is not None:
            step = (event.index, event.steps, event.t, event.s, event.x)
            self.observe(Progress(*step, self.batch, self.batches))

    def strip(self) -> list[Tensor]:
        return [torch.stack(self.kept, dim=1)] if self.kept else []


@contextmanager
def _evaluating(*models: Model) -> Iterator[None]:
    """Dropout and its like are off meanwhile; modules already so are not touched, as threads share them."""
    parts = [part for model in models for part in model.modules().values()]
    training = [m for part in parts for m in part.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _precision(model: Model) -> Any:
    """x stays float32; a network of half precision computes in its own."""
    dtype = _dtype(model.denoiser)
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype if half else torch.bfloat16, enabled=half)


def _dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _recipes(
    model: Model,
    walk: Walk,
    size: tuple[int, int],
    seeds: list[int],
    kept: Sequence[Record],
    edited: Edited | None,
) -> list[dict[str, Any]]:
    """One a picture; `kept` of what is said, and of what is steered away from where that is said."""
    change = {} if edited is None else edited.describe()
    named = dict(zip(("inputs", "negative"), kept, strict=False))
    pictures = {**change.pop("pictures", {}), **{k: v for each in kept for k, v in each.pictures.items()}}
    lost = [*change.pop("unrecorded", []), *(name for each in kept for name in each.lost)]
    shared = {
        "sfumato": __version__,
        "model": {key: model.card[key] for key in ("name", "hash", "source") if key in model.card},
        **walk.describe(model),
        **change,
        **({"pictures": pictures} if pictures else {}),
        "size": list(size),
        "precision": str(_dtype(model.denoiser)).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if unrecorded := [*shared.get("unrecorded", ()), *dict.fromkeys(lost)]:
        shared["unrecorded"] = unrecorded
    recipes = []
    for row, seed in enumerate(seeds):
        own: dict[str, Any] = {"seed": seed}
        own |= {
            key: {name: values[row] for name, values in each.rows.items()} for key, each in named.items()
        }
        if len(seeds) > 1:
            # Rounding may depend on the company a picture was made in: the same bytes need the same company.
            own["batch"] = {"row": row, "seeds": seeds, **{key: each.rows for key, each in named.items()}}
        recipes.append({**shared, **own})
    return recipes
