"""Invert: from a picture to the noise from which a model makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.edit import Canvas
from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Observe, Sampler, StepEvent, move
from sfumato.data.picture import pictures
from sfumato.editing.inverted import Inversion, is_first_order
from sfumato.editing.null_text import null_text, prompt_as_null, task_of
from sfumato.generation.second_models import Load, bind
from sfumato.generation.task import evaluating, precision
from sfumato.model import Model
from sfumato.samplers.ddim import DDIM

Method = Literal["ddim", "ddim_below", "fixed_point", "exact"]
METHODS: tuple[Method, ...] = ("ddim", "ddim_below", "fixed_point", "exact")


def invert(
    model: Model,
    image: Any,
    /,
    *,
    steps: int = 50,
    method: Method = "ddim",
    null: Literal["text", "prompt"] | None = None,
    scale: float = 7.5,
    sampler: Any = "ddim",
    times: Any = None,
    guidance: Any = 1,
    path: Any = None,
    size: int | tuple[int, int] | None = None,
    negative: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
    iterations: int = 50,
    batch: int | None = None,
    observe: Observe | None = None,
    load: Load | None = None,
    **inputs: Any,
) -> Inversion:
    """The noise from which a model makes a picture again, and the way up to it.

        found = invert(model, "cat.png", prompt="a cat", null="text")
        found.make()                                            # the picture again
        found.make(prompt="a dog")                              # as a dog
        generate(model, prompt="a dog", edit=Inverted(found))   # with whatever else generate combines

    Walks up the steps that are walked down to make pictures, each undone by a method of `climb`. Of guidance
    1, the default, that follows the model's own flow; more makes the way up wander off, and is better made up
    for afterwards by nulls: see `null_text`.

    Args:
        model: what is to make it.
        image: a path, an image or a tensor (C, H, W) in [-1, 1], or a list of several.
        steps: of the walk.
        method: how a step is undone: "ddim", "ddim_below", "fixed_point" or "exact".
        null: what stands for saying nothing when the pictures are made again under guidance: "text", found so
            that they come out right; "prompt", the words of the picture itself; None, what the model has.
        scale: of that guidance.
        sampler: what is undone. Of the methods "fixed_point" and "exact" any that draws nothing and has no
            memory (ddim, euler, heun, dpm2); else ddim or euler.
        times: where the steps lie; as the model's card says if not said.
        guidance: on the way up.
        path: the process to walk along, if not the one the network was trained on.
        size: (height, width) that pictures are scaled to cover and cut to; their own if not said.
        negative: what guidance on the way up steers away from.
        tolerance: of "fixed_point" and "exact": when a step is undone, at unit scale.
        iterations: of these: at most so many a step.
        batch: pictures walked at once.
        observe: called after every step up.
        load: reads a second model that a guidance names by its path.
        inputs: what the model is told: what the picture shows.

    Raises:
        InvalidInput: a picture, setting or input that makes no sense, or a sampler that cannot be undone.
    """
    _check(method, null, tolerance, iterations)
    sides = (size, size) if isinstance(size, int) else size
    given = pictures(image, model.space.image_channels, "image", sides)
    settings = {"steps": steps, "sampler": sampler, "times": times, "guidance": guidance, "path": path}
    settings |= {"negative": negative, "load": load}
    task = task_of(model, given, settings, inputs)
    whole = Canvas(given).padded(model.space.step).image
    _check_sampler(task.walk.sampler, method)
    grid = task.walk.times(task.walk.path, task.walk.steps)
    trails, residuals = [], []
    with evaluating(task), precision(model):
        limit = task.room(batch)
        for start in range(0, len(given), limit):
            part = slice(start, start + limit)
            condition, without = task.conditions(part)
            denoiser: Any = model.denoiser
            for each in bind(task.walk.guidance, task.count(part), task.heard(part)):
                denoiser = each(denoiser, without)
            reverse = ReverseProcess(denoiser, task.walk.path, condition, Silent(task.count(part)))
            x = model.space.encode(whole[part].to(model.device))
            trail, off = climb(reverse, x, grid, method, task.walk.sampler, tolerance, iterations, observe)
            trails.append(trail.float().cpu())
            residuals.append(off)
    missed = (
        torch.cat([off for off in residuals if off is not None], dim=1) if residuals[0] is not None else None
    )
    trail = torch.cat(trails, dim=1)
    found = Inversion(model, given, trail, grid, task.walk.path, settings, inputs, missed)
    if null == "text":
        return null_text(found, scale)
    return found if null is None else prompt_as_null(found, scale)


def climb(
    reverse: ReverseProcess,
    x: Tensor,
    times: Tensor,
    method: Method = "ddim",
    sampler: Sampler | None = None,
    tolerance: float = 1e-5,
    iterations: int = 50,
    observe: Observe | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A deterministic walk undone, from x (B, ..) at times[-1] up to times[0].

    A first-order step from t down to s keeps the noise that it estimates at t,

        x_s = alpha_s x0 + sigma_s eps(x_t, t),

    so that undoing it takes the estimate at an x_t not known yet:

    - "ddim": the noise estimated at t, of x_s (at t's scale) in place of x_t; one estimate a step. What
      Mokady et al. and diffusers run.
    - "ddim_below": the noise estimated of x_s at s itself, as their equation and Song et al. say it; where s
      is clean data, in which there is no noise to be seen, as "ddim".
    - "fixed_point": x_t corrected by what its step misses x_s by, until that is less than `tolerance`:

          x_t ← x_t + (x_s - step(x_t)) / (k + (alpha_s - k alpha_t) alpha_t / (alpha_t² + sigma_t²)),
          k = sigma_s / sigma_t

      which divides by the slope that the step has on data of unit variance, and converges for Gaussian data
      of any smaller. The last corrections are joined (Anderson), as they go on slowly where data vary little.
      A step down to clean data is undone as by "ddim": it forgets what no data have, and what would be needed
      to find that again is no noise that edits can start from.
    - "exact": so too the step to clean data.

    The round trip of the first two misses by O(1/N) in all, that of "exact" by the tolerance of each step,
    and that of "fixed_point" besides by what the last step forgets. Rows do not depend on each other.

    Song, Meng & Ermon 2021, arXiv:2010.02502, section 4.3; Mokady et al. 2022, arXiv:2211.09794, equation 3;
    iterated: Pan, Gherardi, Xie & Huang 2023, "Effective Real Image Editing with Accelerated Iterative
    Diffusion Inversion", arXiv:2309.04907.

    Args:
        reverse: the walk that is undone.
        x: clean data, or what stands at times[-1].
        times: of the walk down, decreasing, (N + 1,).
        method: as above.
        sampler: what is undone, DDIM if not said.
        tolerance: root of the mean square that a step may miss x_s by, at unit scale.
        iterations: at most so many a step.
        observe: called after every step up; its t is below its s.

    Returns:
        x at each of the times (N + 1, B, ..), and how far a step down misses, (N, B); None if not measured.
    """
    walk, sampler = times.tolist(), sampler or DDIM()
    pairs = list(pairwise(walk))[::-1]
    trail, missed = [x], []
    for index, (t, s) in enumerate(pairs):
        if method in ("ddim", "ddim_below"):
            x = _estimated(reverse, x, t, s, below=method == "ddim_below")
        else:
            solved = method == "exact" or reverse.level(s).sigma > 0
            x, off = _solved(reverse, sampler, x, t, s, tolerance, iterations if solved else 0)
            missed.append(off)
        trail.append(x)
        if observe is not None:
            observe(StepEvent(index, len(pairs), s, t, x))
    return torch.stack(trail[::-1]), torch.stack(missed[::-1]) if missed else None


class Silent(Noise):
    """Noise of so many rows that nobody may draw from: a walk that does cannot be undone."""

    def __init__(self, rows: int) -> None:
        super().__init__([0] * rows)

    def words(self, count: int, purpose: str, moment: float = 0.0) -> Tensor:
        raise InvalidInput(
            "draws noise as it goes, and cannot be undone",
            where="sampler",
            do="give ddim, euler, heun or dpm2",
        )


def _estimated(reverse: ReverseProcess, x: Tensor, t: float, s: float, below: bool) -> Tensor:
    """x_t of x_s by one estimate of the noise."""
    here, there = reverse.level(t), reverse.level(s)
    if below and there.sigma > 0:
        return move(x, reverse.denoise(x, there).x0, there, here)
    guess = x * (here.norm / there.norm)
    x0 = reverse.denoise(guess, here).x0
    if here.alpha == 0 and there.sigma > 0:
        # In noise alone the estimate of the data is the same everywhere, and undoes the step exactly.
        return move(x, x0, there, here)
    eps = (guess - here.alpha * x0) / here.sigma
    fade = here.alpha / there.alpha
    return torch.add(x * fade, eps, alpha=here.sigma - fade * there.sigma)


@dataclass
class _Memory:
    """The last corrections of each row, by which Anderson's method joins them.

    Anderson 1965, "Iterative procedures for nonlinear integral equations"; type II.
    """

    depth: int = 4

    def __post_init__(self) -> None:
        self.points: list[Tensor] = []
        self.steps: list[Tensor] = []

    def joined(self, x: Tensor, step: Tensor) -> Tensor:
        """Where to go from x (B, n) when the plain correction is step."""
        self.points, self.steps = [*self.points, x][-self.depth :], [*self.steps, step][-self.depth :]
        if len(self.points) == 1:
            return x + step
        turns = torch.stack([step - past for past in self.steps[:-1]], dim=2).double()
        moves = torch.stack([x - past for past in self.points[:-1]], dim=2).double()
        gram = turns.mT @ turns
        ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-300)
        gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        share = torch.linalg.solve(gram, turns.mT @ step.double()[..., None])
        return x + step - ((moves + turns) @ share)[..., 0].to(x)


def _solved(
    reverse: ReverseProcess, sampler: Sampler, x: Tensor, t: float, s: float, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """x_t of x_s by at most so many corrections of one estimate, and by how much its step misses (B,)."""
    here, there = reverse.level(t), reverse.level(s)
    keep = there.sigma / here.sigma
    slope = keep + (there.alpha - keep * here.alpha) * here.alpha / here.norm**2
    guess = _estimated(reverse, x, t, s, below=False)
    best, least = guess, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    memory = _Memory()
    for turn in range(most + 1):
        missed = x - sampler.step(reverse, guess, t, s, None)[0]
        off = missed.double().flatten(1).square().mean(1).sqrt() / there.norm
        better = off < least
        best, least = torch.where(_column(better, x), guess, best), torch.minimum(off, least)
        going = least > tolerance
        if turn == most or not bool(going.any()):
            break
        joined = memory.joined(guess.flatten(1), missed.flatten(1) / slope).view_as(x)
        guess = torch.where(_column(going, x), joined, best)
    return best, least


def _column(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (x.ndim - 1))


def _check(method: str, null: str | None, tolerance: float, iterations: int) -> None:
    if method not in METHODS:
        raise InvalidInput(f"{method!r} is none", where="method", do=nearest(str(method), METHODS))
    if null not in (None, "text", "prompt"):
        raise InvalidInput(f"{null!r} is none", where="null", do="give text, prompt or None")
    if not tolerance > 0 or type(iterations) is not int or iterations < 1:
        raise InvalidInput("are to be above 0", where="tolerance, iterations")


def _check_sampler(sampler: Sampler, method: str) -> None:
    if method in ("ddim", "ddim_below") and not is_first_order(sampler):
        raise InvalidInput(
            f"{type(sampler).__name__} takes no steps of first order without noise, which {method} undoes",
            where="sampler",
            do="give ddim or euler, or method fixed_point",
        )
    if sampler.init(torch.zeros(1, 1, 1, 1)) is not None:
        raise InvalidInput(
            f"{type(sampler).__name__} carries something from step to step, and cannot be undone",
            where="sampler",
            do="give ddim, euler, heun or dpm2",
        )
