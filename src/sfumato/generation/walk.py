"""Walk: how a model is walked from noise to data, as a caller, the model's card and the defaults say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sfumato.acceleration.presets import spelled_out
from sfumato.core.acceleration import Acceleration
from sfumato.core.errors import InvalidInput
from sfumato.core.guidance import Guidance
from sfumato.core.process import Process
from sfumato.core.reverse import Plan, nested
from sfumato.core.sampler import Sampler
from sfumato.core.times import Times
from sfumato.generation.second_models import Load, recorded, resolve
from sfumato.model import Model
from sfumato.registry import build, describe, is_named

DEFAULTS: dict[str, Any] = {
    "sampler": "dpm_solver_pp",
    "times": "karras",
    "steps": 25,
    "guidance": [],
    "fast": [],
}
"""What is used where neither the caller nor the model's card says anything."""


@dataclass(frozen=True)
class Walk:
    """The parts of a walk from noise to data, built."""

    sampler: Sampler
    times: Times
    guidance: list[Guidance]
    steps: int
    path: Process
    fast: list[Acceleration]

    @staticmethod
    def plan(
        model: Model,
        sampler: Any,
        times: Any,
        guidance: Any,
        steps: int | None,
        path: Any,
        load: Load | None,
        fast: Any = None,
    ) -> Walk:
        """Parts from objects, names or descriptions; what is None is as the model's card says, else as
        DEFAULTS.

        Raises:
            InvalidInput, NotFound: a part that is none; what `resolve` of second_models raises.
        """

        def setting(name: str, given: Any) -> Any:
            return given if given is not None else model.card.get(name, DEFAULTS.get(name))

        steps = setting("steps", steps)
        if type(steps) is not int or not 1 <= steps <= 1000:
            raise InvalidInput(f"{steps!r} is not a whole number from 1 to 1000", where="steps")
        wanted = setting("guidance", guidance)
        if isinstance(wanted, int | float) and not isinstance(wanted, bool):
            wanted = _scaled(model.card.get("guidance", []), float(wanted))
        wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        walked, quick = setting("path", path), setting("fast", fast)
        return Walk(
            _built("sampler", setting("sampler", sampler)),
            _built("times", setting("times", times)),
            resolve([_built("guidance", each) for each in wanted], load, model),
            steps,
            model.process if walked is None else _built("process", walked),
            [_built("acceleration", each) for each in spelled_out(quick)],
        )

    def hooks(self, network: nn.Module) -> Plan | None:
        """The accelerations' for one walk of a network, innermost of all."""
        return nested(*(each.plan(network) for each in self.fast))

    def describe(self, model: Model) -> dict[str, Any]:
        """The parts as plain data, and what is the caller's own and `unrecorded`."""
        parts: dict[str, Any] = {"sampler": self.sampler, "times": self.times}
        if self.path != model.process:
            parts["path"] = self.path
        told = {"steps": self.steps, **recorded(self.guidance)}
        if self.fast:
            told["fast"] = [describe(each) for each in self.fast if is_named(each)]
            if len(told["fast"]) < len(self.fast):
                told["unrecorded"] = [*told.get("unrecorded", ()), "fast"]
        told |= {kind: describe(part) for kind, part in parts.items() if is_named(part)}
        if own := [kind for kind, part in parts.items() if not is_named(part)]:
            told["unrecorded"] = [*told.get("unrecorded", ()), *own]
        return told


_STEERING = ("adaptive_projected", "classifier_free", "image_and_text", "rescale")
"""Guidances whose `scale` is what people mean by the scale of guidance."""


def _scaled(usual: Any, scale: float) -> list[Any]:
    """The card's guidance with another scale: what else it does (thresholding, an interval) stays."""
    if not math.isfinite(scale):
        raise InvalidInput(f"{scale} is not a finite number", where="guidance")
    parts = [_named(part) for part in usual] if isinstance(usual, list | tuple) else []
    scaled = [(place, _rescaled(part, scale)) for place, part in enumerate(parts)]
    found = next(((place, part) for place, part in scaled if part is not None), None)
    # Windows stand inside of what takes the null.
    place = found[0] if found else sum(part["name"] == "windows" for part in parts[:1])
    own = found[1] if found else {"name": "classifier_free", "scale": scale}
    rest = [part for part in parts if _rescaled(part, scale) is None]
    plain = scale == 1 and own is not None and own["name"] != "image_and_text"
    return rest if plain else [*rest[:place], own, *rest[place:]]


def _rescaled(part: dict[str, Any], scale: float) -> dict[str, Any] | None:
    """A guidance that steers, alone or within an interval, with another scale; None of one that does not."""
    if part["name"] in _STEERING:
        return {**part, "scale": scale}
    if part["name"] == "interval":
        inner = _rescaled(_named(part.get("guidance", "classifier_free")), scale)
        return None if inner is None else {**part, "guidance": inner}
    return None


def _named(part: Any) -> dict[str, Any]:
    return {"name": part} if isinstance(part, str) else dict(part)


def _built(kind: str, given: Any) -> Any:
    part = build(kind, given) if isinstance(given, str | Mapping) else given
    method = {"sampler": "step"}.get(kind, "__call__")
    known = (
        isinstance(part, Acceleration) if kind == "acceleration" else callable(getattr(part, method, None))
    )
    if isinstance(part, type) or not known:
        raise InvalidInput(f"{given!r} is none", where=kind, do="give a name, a dictionary or an object")
    return part
