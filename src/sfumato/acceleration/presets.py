"""Presets: accelerations that go well together, by what they cost in fidelity."""

from __future__ import annotations

from typing import Any

_SAME = ["prepack", "fused", "text_cache", "shared_prefix"]
PRESETS: dict[str, list[Any]] = {
    "lossless": _SAME,
    "int8": [{"name": "prepack", "int8": True}, *_SAME[1:], "quantized_attention"],
    "balanced": [*_SAME, {"name": "block_cache", "every": 3}],
    "draft": [*_SAME, {"name": "block_cache", "every": 5}],
}
"""The same pictures but for rounding, and but for that of eight bits; others near them; for a first look."""


def spelled_out(fast: Any) -> list[Any]:
    """One acceleration or several, each by itself; the name of a preset stands for those it holds."""
    given = list(fast) if isinstance(fast, list | tuple) else [fast]
    parts = (PRESETS.get(each, [each]) if isinstance(each, str) else [each] for each in given)
    return [part for held in parts for part in held]
