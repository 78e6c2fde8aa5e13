"""Generate: from a model and what it is told to pictures, each with the recipe that makes it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.edit import Start
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess, nested
from sfumato.core.sampler import Observe, StepEvent, sample
from sfumato.core.space import Space
from sfumato.generation.finite import find_non_finite
from sfumato.generation.images import Images
from sfumato.generation.optimize import prepared
from sfumato.generation.second_models import Load
from sfumato.generation.task import Task, dtype_of, evaluating, precision
from sfumato.model import Model


@dataclass(frozen=True)
class Progress(StepEvent):
    """One step of one batch, beside what StepEvent tells.

    Args:
        batch: which it was.
        batches: of how many.
        x0: what the step last took the data to be, in the model's space.
        space: the model's.
    """

    batch: int
    batches: int
    x0: Tensor
    space: Space

    def preview(self) -> Tensor:
        """The pictures as they are taken to be by now, cheaply: (B, C, h, w) in [-1, 1], on the CPU."""
        return self.space.preview(self.x0).float().cpu()

    @property
    def done(self) -> float:
        """Part of all the work that is done, 0 to 1."""
        return (self.batch + (self.index + 1) / self.steps) / self.batches


def generate(
    model: Model,
    /,
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
    fast: Any = None,
    negative: Mapping[str, Any] | None = None,
    edit: Any = None,
    batch: int | None = None,
    film: int = 0,
    observe: Observe | None = None,
    load: Load | None = None,
    **inputs: Any,
) -> Images:
    """Generate pictures; what is not said is as the model's card says, else as walk.DEFAULTS.

    Parts (sampler, times, guidance, path, fast) are objects, names, or dictionaries as `describe` gives them;
    the recipe says when some are the caller's own, such as a function (denoiser, null) → denoiser for a
    guidance. Picture i has seed + i, and is the same alone or in a batch, up to the rounding of the
    arithmetic.

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
        fast: what makes the walk cheaper: a preset ("lossless": the same pictures but for rounding,
            "int8", "balanced", "draft": others near them), or one or several accelerations such as
            block_cache. What they prepare is prepared anew for every call; `optimize` does it once.
        negative: inputs to steer away from, in place of saying nothing.
        edit: a change of given pictures (image_to_image, inpaint, outpaint), to start from in place of noise;
            or of the walk (prompt_to_prompt, local_blend, regional).
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
    task = Task.of(
        model,
        count=count,
        seed=seed,
        seeds=seeds,
        steps=steps,
        sampler=sampler,
        times=times,
        guidance=guidance,
        size=size,
        path=path,
        fast=fast,
        negative=negative,
        edit=edit,
        load=load,
        inputs=inputs,
    )
    with evaluating(task):
        limit = task.room(batch)
        task = replace(task, model=prepared(task, limit))
        starts = range(0, len(task.seeds), limit)
        made, frames, recipes = [], [], []
        for number, start in enumerate(starts):
            part = slice(start, start + limit)
            keep = _Film(film, task, observe, number, len(starts))
            made.append(_batch(task, part, keep))
            frames.extend(keep.strip())
            recipes.extend(_recipes(task, part))
    return Images(torch.cat(made), tuple(recipes), torch.cat(frames) if frames else None)


def _batch(task: Task, part: slice, film: _Film) -> Tensor:
    model, walk, seeds = task.model, task.walk, task.seeds[part]
    condition, null = task.conditions(part)
    edited = None if task.edited is None else task.edited.rows(part)
    turn = task.turn(part, condition)
    guidance = task.guidance(part, turn)

    def guided(null: Condition) -> Denoiser:
        denoiser: Any = model.denoiser
        for each in guidance:
            denoiser = each(denoiser, null)
        return denoiser

    plan = nested(turn.plan, walk.hooks(model.denoiser.network))
    reverse = ReverseProcess(guided(null), walk.path, condition, Noise(seeds), plan)
    grid = walk.times(walk.path, walk.steps)
    sampler = walk.sampler if turn.sampler is None else turn.sampler(walk.sampler)
    with precision(model):
        if edited is None or edited.canvas is None:
            x = reverse.prior((len(seeds), *task.shape), float(grid[0])).to(model.device)
        else:
            denoiser, x, grid = edited.begin(model, reverse.denoiser, walk, grid, reverse.source)
            reverse = replace(reverse, denoiser=denoiser)
        start = Start(reverse, x, grid, sampler, null, guided)
        if turn.begin is not None:
            start = turn.begin(start)
        reverse, x, grid, sampler = start.reverse, start.x, start.times, start.sampler
        reverse = replace(reverse, denoiser=film.listening(reverse.denoiser))
        end = sample(sampler, reverse, x, grid, film)
        # Looked at once, at the end: a step costs nothing, and the walk is the same the second time.
        if not bool(torch.isfinite(end).all()):
            raise find_non_finite(model, guidance, sampler, reverse, null, x, grid)
        image = model.space.decode(end).float().cpu()
        if not bool(torch.isfinite(image).all()):
            raise find_non_finite(model, guidance, sampler, reverse, null, x, grid)
    return image if edited is None else edited.finish(image)


class _Film:
    """Passes steps on with the batch they belong to, and keeps some frames: x at unit scale, decoded."""

    def __init__(self, frames: int, task: Task, observe: Observe | None, batch: int, batches: int) -> None:
        if frames < 0 or frames > task.steps:
            raise InvalidInput(f"{frames} frames of {task.steps} steps", where="film", do="ask for fewer")
        self.kept: list[Tensor] = []
        self.at = {round((i + 1) * task.steps / frames) - 1 for i in range(frames)}
        self.path, self.space, self.observe = task.walk.path, task.model.space, observe
        self.batch, self.batches = batch, batches
        self.x0: Tensor | None = None

    def listening(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, the last of whose estimates is remembered for who observes."""
        if self.observe is None:
            return denoiser

        def heard(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            found = denoiser(x, level, condition)
            self.x0 = found.x0
            return found

        return heard

    def __call__(self, event: StepEvent) -> None:
        if event.index in self.at:
            self.kept.append(self.space.decode(event.x / self.path(event.s).norm).float().cpu())
        if self.observe is not None:
            step = (event.index, event.steps, event.t, event.s, event.x)
            x0 = event.x if self.x0 is None else self.x0
            self.observe(Progress(*step, self.batch, self.batches, x0, self.space))

    def strip(self) -> list[Tensor]:
        return [torch.stack(self.kept, dim=1)] if self.kept else []


def _recipes(task: Task, part: slice) -> list[dict[str, Any]]:
    """One for each of some pictures."""
    model, seeds, size = task.model, task.seeds[part], task.size
    kept, change = [each.part(part) for each in task.kept], dict[str, Any]()
    if task.edited is not None:
        edited = task.edited.rows(part)
        size, change = edited.size or size, edited.describe()
    named = dict(zip(("inputs", "negative"), kept, strict=False))
    pictures = {**change.pop("pictures", {}), **{k: v for each in kept for k, v in each.pictures.items()}}
    lost = [*change.pop("unrecorded", []), *(name for each in kept for name in each.lost)]
    shared = {
        "sfumato": __version__,
        "model": {key: model.card[key] for key in ("name", "hash", "source") if key in model.card},
        **task.walk.describe(model),
        **change,
        **({"pictures": pictures} if pictures else {}),
        "size": list(size),
        "precision": str(dtype_of(model.denoiser)).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if unrecorded := [*shared.get("unrecorded", ()), *dict.fromkeys(lost)]:
        shared["unrecorded"] = unrecorded
    recipes = []
    for row, seed in enumerate(seeds):
        own: dict[str, Any] = {"seed": seed}
        own |= {key: {name: values[row] for name, values in each.rows.items()} for key, each in named.items()}
        if len(seeds) > 1:
            # Rounding may depend on the company a picture was made in: the same bytes need the same company.
            own["batch"] = {"row": row, "seeds": seeds, **{key: each.rows for key, each in named.items()}}
        recipes.append({**shared, **own})
    return recipes
