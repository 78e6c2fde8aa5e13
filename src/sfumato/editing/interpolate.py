"""Interpolate: a strip of pictures from one seed, one prompt or one picture to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.edit import Canvas, Scene, Start, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.sampler import Observe
from sfumato.editing.invert import invert
from sfumato.editing.inverted import Inversion, stepwise
from sfumato.generation.generate import generate
from sfumato.generation.images import Images
from sfumato.generation.second_models import Load
from sfumato.generation.task import Task
from sfumato.model import Model

_SLOTS = ("vector", "channels", "draft", "image_tokens", "hint_scales")


def interpolate(
    model: Model,
    /,
    between: Mapping[str, Sequence[Any]],
    count: int = 8,
    *,
    seed: int = 0,
    steps: int | None = None,
    sampler: Any = None,
    times: Any = None,
    guidance: Any = None,
    size: int | tuple[int, int] | None = None,
    path: Any = None,
    negative: Mapping[str, Any] | None = None,
    batch: int | None = None,
    observe: Observe | None = None,
    load: Load | None = None,
    **inputs: Any,
) -> Images:
    """A strip of pictures on the way from one thing to the next.

        interpolate(model, {"seed": [1, 2], "prompt": ["a cat", "a dog"]}, count=8)
        interpolate(model, {"image": ["cat.png", "dog.png"], "prompt": ["a cat", "a dog"]}, count=8)

    All lists of `between` name as many stations, at which the pictures are those that `generate` makes of
    their seeds and words, up to rounding. Between two stations, with f from 0 to 1,

    - random numbers, those that samplers draw on the way too, go along the great circle (`slerp`), so that
      they stay as large as noise is: Song, Meng & Ermon 2021, arXiv:2010.02502, appendix D.5;
    - what the model is told, and what it is steered away from, goes straight, slot by slot; a token that one
      of the two texts lacks fades in from zero;
    - pictures (`image`) stand for the noise that `invert` finds for them. They are walked by ddim under no
      guidance if nothing else is said, so that the stations are those pictures again.

    Args:
        model: what to ask.
        between: the stations, two or more: `seed`, `image` (pictures, or an Inversion of each) and inputs of
            the model, each a list.
        count: how many pictures, the first and the last station's included.
        seed: of all pictures, where seeds are no stations.
        steps, sampler, times, guidance, size, path, negative, batch, observe, load: as of `generate`.
        inputs: what the model is told of all pictures.

    Raises:
        InvalidInput: lists of different lengths or of one station; else as `generate`.
    """
    stations = _stations(model, between, count)
    said = {
        **inputs,
        **{name: list(values) for name, values in between.items() if name not in ("seed", "image")},
    }
    walk = {"steps": steps, "sampler": sampler, "times": times, "guidance": guidance, "path": path}
    found = None
    if "image" in between:
        found = _found(
            model, between["image"], stations, {**walk, "size": size, "batch": batch, "load": load}, said
        )
        own = {name: found.settings[name] for name in ("steps", "times", "path")}
        walk |= own | {"sampler": sampler or "ddim", "guidance": 1 if guidance is None else guidance}
        sides = Canvas(found.image[:1]).padded(model.space.step).image.shape[2:]
        size = (sides[0], sides[1])
    seeds = [int(each) for each in between.get("seed", [seed] * stations)]
    wanted = {**walk, "negative": negative, "load": load, "size": size}
    ends = Task.of(model, count=1, seed=None, seeds=seeds, edit=None, inputs=said, **wanted)
    task, places = _strip(ends, count)
    limit, made = task.room(batch), []
    for start in range(0, count, limit):
        part = slice(start, start + limit)
        asked = {**task.told(part)[0], **wanted, "negative": task.told(part)[1]}
        edit = _Between(ends, [place[part] for place in places], found)
        made.append(generate(model, seeds=task.seeds[part], edit=edit, observe=observe, **asked))
    image = torch.cat([each.tensor for each in made])
    if found is not None:
        image = image[:, :, : found.image.shape[2], : found.image.shape[3]]
    return Images(image, tuple(recipe for each in made for recipe in each.recipes))


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Between rows of a and b (B, ..) along the great circle through them, share (B,) of the way.

        x = |x| (sin((1 - f) θ) a/|a| + sin(f θ) b/|b|) / sin θ,   |x| = (1 - f) |a| + f |b|

    θ is the angle between them. At 0 and 1 it is a and b to the last bit, and so where the two are the same.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """
    f = share.to(a.device, torch.float64).view(-1, *[1] * (a.ndim - 1))
    axes = tuple(range(1, a.ndim))
    lengths = [torch.linalg.vector_norm(each.double(), dim=axes, keepdim=True) for each in (a, b)]
    units = [each.double() / length.clamp_min(1e-300) for each, length in zip((a, b), lengths, strict=True)]
    # By the half-angle, as the arc cosine loses half of the digits where the two are close.
    apart, along = (
        torch.linalg.vector_norm(each, dim=axes, keepdim=True)
        for each in (units[0] - units[1], units[0] + units[1])
    )
    theta = 2 * torch.atan2(apart, along)
    whole = theta.sin()
    straight = whole < 1e-12
    shares = (
        torch.where(straight, g, (g * theta).sin() / torch.where(straight, 1.0, whole)) for g in (1 - f, f)
    )
    mixed = sum(part * unit for part, unit in zip(shares, units, strict=True))
    mixed = (mixed * ((1 - f) * lengths[0] + f * lengths[1])).to(a)
    same = (apart == 0) & (lengths[0] == lengths[1])
    return torch.where((f == 0) | same, a, torch.where(f == 1, b, mixed))


class NoiseBetween(Noise):
    """Random numbers on the way between those of two seeds a row: see `slerp`.

    Whole words, of which there is no between, are those of the nearer seed.

    Args:
        first: where the way begins.
        second: where it ends.
        share: how far along a row is, (B,), 0 to 1.
    """

    def __init__(self, first: Noise, second: Noise, share: Tensor) -> None:
        nearer = torch.where(share.to(first.seeds.device) > 0.5, second.seeds, first.seeds)
        super().__init__(nearer, first.step, first.seeds.device)
        self.first, self.second, self.share = first, second, share

    def __getitem__(self, rows: slice | Tensor) -> NoiseBetween:
        """That of some of the rows."""
        return NoiseBetween(self.first[rows], self.second[rows], self.share[rows])

    def randn(self, shape: Sequence[int], purpose: str, moment: float = 0.0) -> Tensor:
        """Standard normal numbers, as those of Noise: both seeds' together are normal at any share."""
        a, b = (each.randn(shape, purpose, moment) for each in (self.first, self.second))
        return slerp(a, b, self.share)


def mixed(first: Condition, second: Condition, share: Tensor) -> Condition:
    """What is told on the way between two conditions of as many rows, share (B,) of the way.

    Each slot goes straight from the one to the other. Of tokens that only one of two rows has (`mask`) that
    row's fade in from zero, and are masked at the other's end.
    """
    told: dict[str, Any] = {}
    for name in _SLOTS:
        a, b = getattr(first, name), getattr(second, name)
        if a is not None and b is not None:
            told[name] = _straight(a, b, share)
    if first.tokens is not None and second.tokens is not None:
        a, b = first.tokens, second.tokens
        if first.mask is not None and second.mask is not None:
            here, there = first.mask, second.mask
            a, b = a * (here | ~there)[..., None], b * (there | ~here)[..., None]
            at = share.to(here.device)[:, None]
            told["mask"] = (here & (at < 1)) | (there & (at > 0))
        told["tokens"] = _straight(a, b, share)
    told["residuals"] = tuple(
        _straight(a, b, share) for a, b in zip(first.residuals, second.residuals, strict=True)
    )
    told["hints"] = tuple(
        None if a is None or b is None else _straight(a, b, share)
        for a, b in zip(first.hints, second.hints, strict=True)
    )
    return replace(first, **told)


def _straight(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    f = share.to(a).view(-1, *[1] * (a.ndim - 1))
    return torch.where(f == 1, b, torch.lerp(a, b, f))


def _strip(ends: Task, count: int) -> tuple[Task, tuple[Tensor, Tensor, Tensor]]:
    """A strip's pictures, told what the nearer station is; the stations before and after each, and the share
    of the way between them.
    """
    gaps = len(ends.seeds) - 1
    places = [divmod(number * gaps, count - 1) for number in range(count)]
    first = torch.tensor([place for place, _ in places])
    share = torch.tensor([rest / (count - 1) for _, rest in places], dtype=torch.float64)
    second = (first + 1).clamp(max=gaps)
    nearer = torch.where(share > 0.5, second, first).tolist()
    rows, unsaid = (
        None if each is None else {name: [values[i] for i in nearer] for name, values in each.items()}
        for each in (ends.rows, ends.unsaid)
    )
    task = replace(ends, seeds=[ends.seeds[i] for i in nearer], rows=rows or {}, unsaid=unsaid)
    return task, (first, second, share)


class _Between:
    """The edit that walks pictures between stations, all of them together.

    Args:
        ends: the stations.
        places: the station before each picture, that after it, and the share of the way.
        found: the noise of pictures that are stations.
    """

    together = True

    def __init__(self, ends: Task, places: Sequence[Tensor], found: Inversion | None) -> None:
        self.ends, self.found = ends, found
        self.first, self.second, self.share = places

    def turn(self, scene: Scene) -> Turn:
        """Numbers, words and nulls between those of the stations."""
        return Turn(begin=self._begin)

    def _begin(self, start: Start) -> Start:
        said, null = (self._mixed(each) for each in self.ends.conditions(slice(None)))
        seeds = torch.tensor(self.ends.seeds)
        source = NoiseBetween(Noise(seeds[self.first]), Noise(seeds[self.second]), self.share)
        denoiser, x = start.guided(null), start.x
        if self.found is None:
            x = start.reverse.process.prior(x.shape, source, float(start.times[0])).to(x)
        else:
            noise = self.found.noise
            x = slerp(noise[self.first], noise[self.second], self.share).to(x)
            if self.found.nulls:
                nulls = tuple(self._mixed(each) for each in self.found.nulls)
                denoiser = stepwise(start.guided, replace(self.found, nulls=nulls).null_at)
        reverse = replace(start.reverse, denoiser=denoiser, condition=said, source=source)
        return replace(start, reverse=reverse, x=x, null=null)

    def _mixed(self, told: Condition) -> Condition:
        return mixed(told[self.first], told[self.second], self.share)


def _stations(model: Model, between: Mapping[str, Any], count: int) -> int:
    """How many there are."""
    lengths = {name: len(values) for name, values in between.items()}
    if not lengths or len(set(lengths.values())) != 1 or min(lengths.values()) < 2:
        raise InvalidInput(f"lists of one length, two or more, are wanted, not {lengths}", where="between")
    stations = next(iter(lengths.values()))
    if type(count) is not int or count < 2:
        raise InvalidInput(f"{count!r} is not two or more", where="count")
    if {"seed", "image"} <= set(between):
        raise InvalidInput("pictures have noise of their own", where="between.seed", do="leave it out")
    if "image" in between and "image" in model.conditioner.inputs:
        raise InvalidInput("this model is told pictures, which have no between", where="between.image")
    return stations


def _found(
    model: Model, given: Any, stations: int, settings: Mapping[str, Any], said: Mapping[str, Any]
) -> Inversion:
    """The noise of the pictures that are stations."""
    if all(isinstance(each, Inversion) for each in given):
        found = Inversion.joined(list(given))
    else:
        heeded = ("steps", "times", "path", "size", "batch", "load")
        asked = {name: settings[name] for name in heeded if settings[name] is not None}
        found = invert(model, list(given), **asked, **said)
    if len(found) != stations:
        raise InvalidInput(f"{len(found)} pictures for {stations} stations", where="between.image")
    return found
