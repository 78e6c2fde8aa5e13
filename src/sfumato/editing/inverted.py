"""Inverted: pictures made again, or otherwise, from the noise that was found for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.edit import Canvas, Edit, Scene, Start, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.process import Process
from sfumato.core.sampler import Sampler
from sfumato.data.picture import pictures
from sfumato.generation.generate import generate
from sfumato.generation.images import Images
from sfumato.model import Model
from sfumato.samplers.ddim import DDIM
from sfumato.samplers.euler import Euler


@dataclass(frozen=True, eq=False)
class Inversion:
    """Pictures and the way up from them to the noise that the model makes them again from: see `invert`.

    Args:
        model: which makes them again.
        image: the pictures given, (R, C, H, W) in [-1, 1].
        trajectory: x at each of the times, (N + 1, R, c, h, w) float32 on the CPU: first the noise, last the
            pictures in the model's space.
        times: of the walk, decreasing, (N + 1,).
        path: what was walked.
        settings: of the walk, as `generate` takes them.
        said: what the model was told, likewise: a value, or a list with one for each picture.
        residual: how far a step down from each x is from the next, (N, R): the root of the mean square at
            unit scale; None where it was not measured.
        nulls: what stands for saying nothing in each of the N steps, R rows each; none if it is the model's.
    """

    model: Model
    image: Tensor
    trajectory: Tensor
    times: Tensor
    path: Process
    settings: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    residual: Tensor | None = None
    nulls: tuple[Condition, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Inversion:
        """Some of the pictures."""
        return replace(
            self,
            image=self.image[rows],
            trajectory=self.trajectory[:, rows],
            said={
                k: v[rows] if isinstance(v, list) and len(v) == len(self) else v for k, v in self.said.items()
            },
            residual=None if self.residual is None else self.residual[:, rows],
            nulls=tuple(null[rows] for null in self.nulls),
        )

    def null_at(self, level: Level[float]) -> Condition:
        """What stands for saying nothing at a level: that of the nearest step of the way up."""
        angles = [angle(self.path(float(t))) for t in self.times[:-1]]
        near = min(range(len(angles)), key=lambda step: abs(angles[step] - angle(level)))
        return self.nulls[near]

    @property
    def noise(self) -> Tensor:
        """Where the way up ended, (R, c, h, w)."""
        return self.trajectory[0]

    def asked(self, **settings: Any) -> dict[str, Any]:
        """What `generate` is to be told to make it again, unless settings say otherwise."""
        seeded = {} if "seeds" in settings else {"seed": 0, "count": len(self)}
        return {**seeded, **self.settings, **self.said, **settings}

    def make(self, *, strength: float = 1.0, edit: Edit | None = None, **settings: Any) -> Images:
        """Pictures from the noise found: those given as nearly as the inversion is exact, or with other words
        what they make of it.

        Walked as it was found, with the same words, unless settings say otherwise; `guidance` is that of the
        inversion, or the scale that its nulls were made for.

        Args:
            strength: the part of the walk that is walked: below 1 from x on the way up.
            edit: what else is done on the way, as of Inverted.
            settings: as `generate` takes them; of one picture inverted `count` may be more.

        Raises:
            As `generate`.
        """
        return generate(self.model, edit=Inverted(self, strength, edit), **self.asked(**settings))

    @staticmethod
    def joined(parts: Sequence[Inversion]) -> Inversion:
        """Inversions of one walk as one of all their pictures.

        Raises:
            InvalidInput: walks or sizes differ.
        """
        first = parts[0]
        for each in parts[1:]:
            alike = each.path == first.path and torch.equal(each.times, first.times)
            if not alike or each.trajectory.shape[2:] != first.trajectory.shape[2:]:
                raise InvalidInput("inversions of one walk and size are wanted", where="inverted.found")
            if len(each.nulls) != len(first.nulls):
                raise InvalidInput("some have nulls of their own and some do not", where="inverted.found")
        if len(parts) == 1:
            return first
        return replace(
            first,
            image=torch.cat([each.image for each in parts]),
            trajectory=torch.cat([each.trajectory for each in parts], dim=1),
            said={},
            residual=None,
            nulls=tuple(together(nulls) for nulls in zip(*(each.nulls for each in parts), strict=True)),
        )


@dataclass(frozen=True)
class Inverted:
    """Start from the noise that was found for pictures, instead of noise at random.

    What is said changes the pictures, and what is not said stays, as far as the noise holds it. A prompt that
    is edited, a control or another sampler combine with it as with any noise.

    Mokady, Hertz, Aberman, Pritch & Cohen-Or 2022, "Null-text Inversion for Editing Real Images using Guided
    Diffusion Models", arXiv:2211.09794.

    Args:
        found: an Inversion, or a list of them; of one picture for all that are made, or of one for each.
        strength: the part of the walk that is walked, above 0 to 1. Below 1 it begins on the way up, where
            more of the picture is left.
        edit: what else is done on the way: prompt_to_prompt, local_blend, regional.
        image: in place of `found`, the picture for which it is found before the walk: a path, an image, a
            tensor, or a list of them. Such an edit is plain data, and what is made of it can be replayed.
        prompt: what that picture shows.
        steps, method, null, scale: as `invert` takes them; as many steps as are walked if not said.
    """

    found: Any = None
    strength: float = 1.0
    edit: Edit | None = None
    image: Any = None
    prompt: str = ""
    steps: int | None = None
    method: Literal["ddim", "ddim_below", "fixed_point", "exact"] = "ddim"
    null: Literal["text", "prompt"] | None = None
    scale: float = 7.5

    def __post_init__(self) -> None:
        if self.found is not None and self.image is not None:
            raise InvalidInput("both an inversion and a picture are given", where="inverted", do="give one")
        # One for each picture, so that those of a batch can be told.
        given = self.found if isinstance(self.found, list | tuple) else [self.found]
        if all(isinstance(each, Inversion) for each in given):
            apart = [each[row : row + 1] for each in given for row in range(len(each))]
            object.__setattr__(self, "found", apart)

    @property
    def together(self) -> bool:
        """As what else is done on the way."""
        return bool(getattr(self.edit, "together", False))

    def canvas(self, channels: int, size: tuple[int, int] | None) -> Canvas:
        """The pictures given, all of which may change."""
        if self.image is not None:
            return Canvas(pictures(self.image, channels, "image", size), None, self.strength)
        image = self._given().image
        if image.shape[1] != channels or size not in (None, tuple(image.shape[2:])):
            raise InvalidInput(
                f"was found for pictures of {image.shape[3]} x {image.shape[2]} in {image.shape[1]} channels",
                where="inverted.found",
            )
        return Canvas(image, None, self.strength)

    def turn(self, scene: Scene) -> Turn:
        """The walk from the noise, with the nulls of each step if they were found too."""
        turn = getattr(self.edit, "turn", None)
        if self.edit is not None and (turn is None or hasattr(self.edit, "canvas")):
            raise InvalidInput("starts from pictures of its own", where="inverted.edit")
        inner: Turn = Turn() if turn is None else turn(scene)
        if self.image is None:
            self._given()

        def begin(start: Start) -> Start:
            own = self if self.image is None else self._found(scene)
            x, times = own.start(scene.path, scene.times, len(scene))
            found, reverse = own._given(), start.reverse
            if found.nulls:
                reverse = replace(reverse, denoiser=stepwise(start.guided, found.null_at))
            begun = replace(start, reverse=reverse, x=x.to(start.x), times=times)
            return begun if inner.begin is None else inner.begin(begun)

        return replace(inner, begin=begin)

    def _found(self, scene: Scene) -> Inverted:
        """The same, of the inversion of its picture."""
        from sfumato.editing.invert import invert

        space = scene.model.space
        given = pictures(self.image, space.image_channels, "image", None)
        if Canvas(given).padded(space.step).image.shape[2:] != scene.size:
            given = pictures(self.image, space.image_channels, "image", scene.size)
        said: dict[str, Any] = {"prompt": self.prompt} if self.prompt else {}
        found = invert(
            scene.model,
            list(given),
            steps=self.steps or len(scene.times) - 1,
            method=self.method,
            null=self.null,
            scale=self.scale,
            path=scene.path,
            **said,
        )
        return Inverted(found, self.strength)

    def start(self, path: Process, times: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Where so many walks start, x (count, ..) float32 on the CPU, and the times that are left of them.

        They start at a level that was met on the way up, whatever grid and path are walked down.

        Args:
            path: what is walked.
            times: of the walk, (n + 1,).
            count: how many pictures.

        Raises:
            InvalidInput: a path that does not reach the level.
        """
        found = self._given()
        steps = len(found.times) - 1
        index = steps - Canvas(found.image, None, self.strength).walked(steps)
        t = float(found.times[index])
        level = found.path(t)
        here = t if path == found.path else path.time(level.log_snr)
        if not math.isclose(angle(path(here)), angle(level), abs_tol=1e-6):
            raise InvalidInput(
                "this path has no level with as much noise as was found",
                where="path",
                do="walk the one of the inversion",
            )
        x = found.trajectory[index] * (path(here).norm / level.norm)
        # A time that differs by rounding alone is the same.
        left = times[times < here - 1e-9]
        begin = torch.tensor([here], dtype=times.dtype)
        return x.expand(count, *x.shape[1:]), torch.cat((begin, left))

    def _given(self) -> Inversion:
        if not isinstance(self.found, list) or not self.found:
            raise InvalidInput("no inversion is given", where="inverted.found", do="give what invert finds")
        return Inversion.joined(self.found)


def stepwise(guided: Callable[[Condition], Denoiser], null_at: Callable[[Level[Any]], Condition]) -> Denoiser:
    """A guided denoiser whose null is another at each level.

    Args:
        guided: null → the denoiser guided away from it.
        null_at: the null of a level.
    """
    held: dict[int, tuple[Condition, Denoiser]] = {}

    def denoise(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        null = null_at(level)
        # Kept with its guide: the number of an object that is gone may be another's.
        if id(null) not in held:
            held[id(null)] = null, guided(null)
        return held[id(null)][1](x, level, condition)

    return denoise


def together(conditions: Sequence[Condition]) -> Condition:
    """Conditions of some pictures each as one of all; the branches that stacking numbers are none here."""
    return conditions[0] if len(conditions) == 1 else replace(Condition.stack(conditions), branch=None)


def is_first_order(sampler: Sampler) -> bool:
    """Whether its steps keep the noise estimated where they begin, and draw none."""
    return isinstance(sampler, Euler) or (isinstance(sampler, DDIM) and sampler.eta == 0)


def angle(level: Level[float]) -> float:
    """How much noise: 0 for data to π/2 for noise alone."""
    return math.atan2(level.sigma, level.alpha)
