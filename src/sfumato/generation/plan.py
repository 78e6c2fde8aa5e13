"""Plan: what making pictures will take, told before it is begun."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.hooks import Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.core.meta import on_meta
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess, always, nested
from sfumato.core.sampler import sample
from sfumato.generation.memory import available, bytes_of_decoding, bytes_of_weights
from sfumato.generation.optimize import prepared
from sfumato.generation.second_models import Load, bind, second_models
from sfumato.generation.task import Task, evaluating, precision
from sfumato.model import Model

_clock = time.perf_counter
_WARM = 1.0
"""Seconds from which a first evaluation is taken for what the others take; shorter ones are repeated."""


@dataclass(frozen=True)
class Plan:
    """What making pictures takes, in bytes and seconds.

    Args:
        pictures: how many.
        size: (height, width) in pixels of what is walked.
        steps: of the walk.
        calls: estimates of the data a batch asks the model for, which depends on the sampler.
        batch: pictures walked at once.
        batches: of so many.
        weights: bytes of the model's weights, and of second models'.
        walk: bytes a batch adds at the most while it is walked.
        decode: bytes it adds while latents become pictures.
        results: bytes of all the pictures.
        free: bytes that were free for use, beside the weights.
        seconds_telling: for a batch, to turn what is said into conditions.
        seconds_per_call: of one estimate of a batch, with all its guidance, on average.
        seconds_decoding: of a batch.
    """

    pictures: int
    size: tuple[int, int]
    steps: int
    calls: int
    batch: int
    batches: int
    weights: int
    walk: int
    decode: int
    results: int
    free: int
    seconds_telling: float
    seconds_per_call: float
    seconds_decoding: float

    @property
    def memory(self) -> int:
        """Bytes at the highest point; the program itself, without a model, is not counted."""
        return self.weights + self.results + max(self.walk, self.decode)

    @property
    def seconds(self) -> float:
        """Of all of it, from loaded weights to pictures in memory."""
        batch = self.seconds_telling + self.calls * self.seconds_per_call + self.seconds_decoding
        return batch * self.pictures / self.batch


def plan(
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
    fast: Any = None,
    negative: Mapping[str, Any] | None = None,
    edit: Any = None,
    batch: int | None = None,
    load: Load | None = None,
    **inputs: Any,
) -> Plan:
    """What `generate` would take with the same arguments; no picture is made.

    Memory is counted on tensors without numbers, which go the way the real ones will. Time is measured: one
    estimate of a batch at its real size (again where the first was short), and decoding at half the sides,
    which is carried over to the whole by the arithmetic of both. How often the sampler asks is counted by
    walking with a denoiser that costs nothing; of a sampler that chooses its own steps it is a guess.

    Raises:
        InvalidInput: as `generate`, also where not even one picture fits the memory.
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
        together = task.room(batch)
        task = replace(task, model=prepared(task, together))
        model = task.model
        part = slice(together)
        models = (model, *second_models(task.walk.guidance))
        levels = levels_asked(task)
        telling = _timed(lambda: task.conditions(part))
        return Plan(
            pictures=len(task.seeds),
            size=task.size,
            steps=task.steps,
            calls=len(levels),
            batch=together,
            batches=-(-len(task.seeds) // together),
            weights=bytes_of_weights(*(each for one in models for each in one.modules().values())),
            walk=task.bytes_walked(together),
            decode=bytes_of_decoding(model.space, (together, *task.shape)),
            results=task.results,
            free=available(model.device),
            seconds_telling=telling,
            seconds_per_call=_seconds_per_call(task, part, levels),
            seconds_decoding=_seconds_decoding(task, together),
        )


def levels_asked(task: Task) -> list[Level[float]]:
    """The levels at which a walk asks for estimates, in order: it is walked with one that costs nothing.

    The data are taken for normal, whose estimate is alpha x / (alpha² + sigma²).
    """
    asked: list[Level[float]] = []
    learned = task.model.denoiser.learned_range

    def guess(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        asked.append(level)
        x0 = x * (level.alpha / (level.alpha**2 + level.sigma**2))
        return Denoised(x0, torch.zeros_like(x) if learned else None)

    walk = task.walk
    grid = walk.times(walk.path, walk.steps)
    grid = grid[len(grid) - 1 - task.steps :]
    for sides in ((2, 2), task.shape[1:]):
        # A sampler may hold something of the picture's own size, such as a mask.
        asked.clear()
        reverse = ReverseProcess(guess, walk.path, Condition(), Noise([0]))
        try:
            sample(walk.sampler, reverse, reverse.prior((1, task.shape[0], *sides), float(grid[0])), grid)
            break
        except RuntimeError:
            continue
    return asked


def _seconds_per_call(task: Task, part: slice, levels: list[Level[float]]) -> float:
    """On average over levels, which guidance may treat unlike: one of each kind is timed."""
    count = task.count(part)
    condition, null = task.conditions(part)
    turn = task.turn(part, condition)
    denoiser: Any = task.model.denoiser
    for each in task.guidance(part, turn):
        denoiser = each(denoiser, null)
    kinds: dict[tuple[int, ...], list[Level[float]]] = {}
    for level in levels:
        hooked = turn.plan is not None and turn.plan(level) is not None
        kinds.setdefault((hooked, *_rows_asked(task, level)), []).append(level)
    x = Noise(task.seeds[part]).randn((count, *task.shape), "plan").to(task.model.device)
    total = 0.0
    for alike in kinds.values():
        level = alike[len(alike) // 2]
        told = condition if turn.plan is None else replace(condition, hooks=turn.plan(level))
        with precision(task.model):
            total += len(alike) * _timed(partial(denoiser, x * level.norm, level, told))
    return _left_over(task, levels) * total / max(len(levels), 1)


class _Ran(Hooks):
    """Counts the places of a network that are really computed; it stands inside of what leaves them out."""

    count = 0

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """One more."""
        self.count += 1
        return run(h)


def _left_over(task: Task, levels: list[Level[float]]) -> float:
    """What accelerations leave of the network's arithmetic, over the first hundred estimates of a walk.

    Counting arithmetic takes long: of estimates that compute as many places one is counted.
    """
    if not task.walk.fast or not levels:
        return 1.0
    levels, ran = levels[:100], _Ran()
    denoiser = on_meta(task.model.denoiser)
    condition, x = task.conditions(slice(1))[0].to("meta"), torch.empty(1, *task.shape, device="meta")

    def walked(work: Callable[[int, Callable[[], object]], int]) -> list[int]:
        plan = nested(task.walk.hooks(denoiser.network), always(ran))
        assert plan is not None
        told = (replace(condition, hooks=plan(level)) for level in levels)
        asked = enumerate(zip(levels, told, strict=True))
        return [work(number, partial(denoiser, x, level, each)) for number, (level, each) in asked]

    def places(number: int, estimate: Callable[[], object]) -> int:
        before = ran.count
        estimate()
        return ran.count - before

    kinds = walked(places)
    counted = {kind: kinds.index(kind) for kind in kinds}

    def cost(number: int, estimate: Callable[[], object]) -> int:
        if number in counted.values():
            return _arithmetic(estimate)
        estimate()
        return 0

    costs = walked(cost)
    whole = _arithmetic(partial(denoiser, x, levels[0], condition))
    return sum(costs[counted[kind]] for kind in kinds) / (len(kinds) * whole) if whole else 1.0


def _rows_asked(task: Task, level: Level[float]) -> tuple[int, ...]:
    """How many rows guidance asks the network for at a level, call by call; () where that is not told."""
    rows: list[int] = []

    def count(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        rows.append(len(x))
        return Denoised(x, torch.zeros_like(x) if task.model.denoiser.learned_range else None)

    part = slice(1)
    denoiser: Any = count
    try:
        condition, null = (each.to("meta") for each in task.conditions(part))
        for each in bind(task.walk.guidance, 1, task.heard(part), measured=True):
            denoiser = each(denoiser, null)
        denoiser(torch.empty(1, *task.shape, device="meta"), level, condition)
    except (RuntimeError, NotImplementedError, AttributeError):
        return ()
    return tuple(rows)


def _seconds_decoding(task: Task, count: int) -> float:
    space, (channels, height, width) = task.model.space, task.shape
    noise = Noise(range(count))

    def decode(*sides: int) -> float:
        x = noise.randn((count, channels, *sides), "plan").to(task.model.device)
        return _timed(lambda: space.decode(x))

    if not isinstance(space, nn.Module) or min(height, width) < 16 or height % 2 or width % 2:
        return decode(height, width)
    half = decode(height // 2, width // 2)
    if half < _WARM / 4:
        return decode(height, width)
    held = on_meta(space)
    whole = _arithmetic(lambda: held.decode(torch.empty(1, channels, height, width, device="meta")))
    quarter = _arithmetic(
        lambda: held.decode(torch.empty(1, channels, height // 2, width // 2, device="meta"))
    )
    return half * (whole / quarter if quarter else 4.0)


def _arithmetic(work: Callable[[], object]) -> int:
    """Multiplications and additions of matrices and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _timed(work: Callable[[], object]) -> float:
    """Seconds of some work: once if that is long, else the median of what follows the first, cold time."""
    times: list[float] = []
    while not times or (sum(times) < _WARM and len(times) < 6):
        start = _clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(_clock() - start)
    return statistics.median(times[1:] or times)
