"""Telling whether a run being resumed is still the run that was started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sfumato.core.errors import RunChanged
from sfumato.training.settings import Settings

FREE = (
    "minutes",
    "workers",
    "device",
    "compile",
    "winograd",
    "recompute",
    "saving",
    "validation",
    "sample_every",
    "most_skipped",
    "most_bad",
    "tensorboard",
    "cache",
    "card",
    "held_out",
)
"""Settings that may differ when a run is resumed: they do not change what is learnt."""


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Every leaf in which two pieces of plain data differ, as "optimizer.rate: 0.001 -> 0.002"."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in [*before, *(key for key in after if key not in before)]:
            place = f"{path}.{key}" if path else str(key)
            found += differences(before.get(key), after.get(key), place)
        return found
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        return [
            line
            for i, (old, new) in enumerate(zip(before, after, strict=True))
            for line in differences(old, new, f"{path}.{i}")
        ]
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def check_unchanged(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    """Refuse to resume a run whose model, data, settings or code differ from what it was started with.

    Raises:
        RunChanged: with all differences.
    """
    # Settings that came to the package after the run was started were at their defaults in it.
    before = _filled(before, dataclasses.asdict(Settings()), after)
    changed = differences(_fixed(before), _fixed(after))
    if changed:
        raise RunChanged(
            "the run was started differently: " + "; ".join(changed[:20]),
            where=where,
            do="start anew elsewhere, or allow the change",
        )


def _filled(said: Mapping[str, Any], defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, and the default of what is asked and not said; groups of settings likewise."""
    filled = {**{key: value for key, value in defaults.items() if key in asked}, **said}
    for key, value in filled.items():
        if all(isinstance(each.get(key), Mapping) for each in (said, defaults, asked)):
            filled[key] = _filled(value, defaults[key], asked[key])
    return filled


def _fixed(description: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {key: value for key, value in description.items() if key not in FREE}
    decay = (description.get("optimizer") or {}).get("decay", "constant")
    if decay == "constant":
        # A longer run is the same run, unless its learning rate is bent towards the end.
        fixed.pop("steps", None)
    return fixed
