"""Edits of a request: built, laid out for a model, and told in a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from sfumato.core.denoiser import Denoiser
from sfumato.core.edit import Canvas, Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.generation.inputs import Record
from sfumato.generation.walk import Walk
from sfumato.model import Model
from sfumato.registry import build, describe, is_named

_HEEDED = {"image", "mask"}
"""Inputs of models that are told themselves what is to be made anew."""


@dataclass(frozen=True)
class Edited:
    """An edit as one model does it.

    Args:
        edit: what was asked.
        canvas: its pictures, continued to sides that the model's space can take; None if it is given none.
        size: (height, width) that comes out, in pixels; None where that is as without an edit.
        cut: (height, width) that the pictures given were cut to, if asked for.
        told: whether the model is told the picture and the mask by inputs of its own.
        kept: what a recipe keeps of the edit's pictures, by the name of the setting.
    """

    edit: Any
    canvas: Canvas | None
    size: tuple[int, int] | None
    cut: tuple[int, int] | None
    told: bool
    kept: Record

    @staticmethod
    def plan(model: Model, edit: Any, size: tuple[int, int] | None) -> Edited:
        """From an object, a name or a description; pictures are read here.

        Raises:
            InvalidInput, NotFound: no edit, or pictures that are none or do not fit each other.
        """
        edit = build("edit", edit) if isinstance(edit, str | Mapping) else edit
        offers = [callable(getattr(edit, name, None)) for name in ("canvas", "turn")]
        if isinstance(edit, type) or not any(offers):
            raise InvalidInput(f"{edit!r} is none", where="edit", do="give a dictionary or an object")
        if not offers[0]:
            return Edited(edit, None, None, size, False, Record.of({}))
        canvas = edit.canvas(model.space.image_channels, size)
        height, width = canvas.image.shape[2:]
        told = canvas.change is not None and set(model.conditioner.inputs) >= _HEEDED
        held = _pictures(edit) if is_named(edit) else {}
        given = {name: list(value) if _many(value) else [value] for name, value in held.items()}
        kept = Record.of(given, given)
        return Edited(edit, canvas.padded(model.space.step), (height, width), size, told, kept)

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width that are worked on, in pixels; None where that is as without an edit."""
        return None if self.canvas is None else (self.canvas.image.shape[2], self.canvas.image.shape[3])

    @property
    def together(self) -> bool:
        """Whether all its pictures are walked in one batch."""
        return bool(getattr(self.edit, "together", False))

    def steps(self, steps: int) -> int:
        """How many of the walk's steps are walked."""
        return steps if self.canvas is None else self.canvas.walked(steps)

    def turn(self, scene: Scene) -> Turn:
        """What it makes of the walk of a batch."""
        turn: Turn = self.edit.turn(scene) if callable(getattr(self.edit, "turn", None)) else Turn()
        return turn

    def rows(self, part: slice) -> Edited:
        """For some of the pictures made."""
        if self.canvas is None:
            return self
        settings = {f.name: getattr(self.edit, f.name) for f in fields(self.edit)}
        lists = {k: v[part] for k, v in settings.items() if isinstance(v, list | tuple) and len(v) > 1}
        kept = {name: values[part] if name in lists else values for name, values in self.kept.rows.items()}
        return replace(
            self,
            edit=replace(self.edit, **lists),
            canvas=self.canvas.rows(part),
            kept=replace(self.kept, rows=kept),
        )

    def inputs(self, count: int) -> dict[str, list[Tensor]]:
        """What the model is told of it, one tensor a row."""
        if not self.told or self.canvas is None or self.canvas.change is None or self.size is None:
            return {}
        # As they were given: conditioners continue what they are told to sides of their own accord.
        high, wide = self.size
        image, change = (each[:, :, :high, :wide] for each in (self.canvas.image, self.canvas.change))
        return {
            "image": list(image.expand(count, -1, -1, -1)),
            "mask": list((change > 0).float().expand(count, -1, -1, -1)),
        }

    def begin(
        self, model: Model, denoiser: Denoiser, walk: Walk, times: Tensor, noise: Noise
    ) -> tuple[Denoiser, Tensor, Tensor]:
        """The denoiser that keeps what may not change, where the walk starts, and its times."""
        assert self.canvas is not None, "only an edit of given pictures starts from them"
        known = model.space.encode(self.canvas.image.to(model.device))
        known = known.expand(len(noise), *[-1] * (known.ndim - 1))
        x, left = self.canvas.begin(known, walk.path, times, noise)
        return denoiser if self.told else self.canvas.blend(denoiser, known), x, left

    def finish(self, image: Tensor) -> Tensor:
        """Pictures made (B, C, H, W), laid into those given and cut to their size."""
        if self.canvas is None or self.size is None:
            return image
        return self.canvas.finish(image)[:, :, : self.size[0], : self.size[1]]

    def describe(self) -> dict[str, Any]:
        """For a recipe: the edit with its pictures' paths, their hashes, and what is `unrecorded`."""
        if not is_named(self.edit):
            return {"unrecorded": ["edit"]}
        if lost := _unread(self.edit):
            return {"unrecorded": lost}
        rows = self.kept.rows
        pictures = {n: rows[n] if _many(value) else rows[n][0] for n, value in _pictures(self.edit).items()}
        told: dict[str, Any] = {"edit": describe(replace(self.edit, **pictures))}
        if self.kept.pictures:
            told["pictures"] = self.kept.pictures
        if self.cut is not None:
            told["cut"] = list(self.cut)
        lost = sorted(f"edit.{name}" for name in self.kept.lost)
        return {**told, "unrecorded": lost} if lost else told


def _pictures(edit: Any) -> dict[str, Any]:
    """The settings of an edit, or of a group of them, that are pictures."""
    found = {f.name: getattr(edit, f.name) for f in fields(edit) if f.type == "Any"}
    return {name: value for name, value in found.items() if value is not None}


def _unread(edit: Any) -> list[str]:
    """The settings of an edit that hold pictures inside, which a recipe does not follow: masks of regions."""
    inside = {f.name: getattr(edit, f.name) for f in fields(edit) if f.type != "Any"}
    groups = {name: value if _many(value) else [value] for name, value in inside.items()}
    held = {name: [part for part in parts if is_dataclass(part)] for name, parts in groups.items()}
    return [
        f"edit.{name}"
        for name, parts in held.items()
        if any(_pictures(part) or _unread(part) for part in parts)
    ]


def _many(value: Any) -> bool:
    return isinstance(value, list | tuple)
