"""Embedded models: those that come with the package, by their names."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "embedded"
DEFAULT = "emoji"
"""What is loaded where no model is named."""


def names() -> list[str]:
    """Names of the models in the package."""
    return sorted(file.parent.name for file in FOLDER.glob("*/model.json"))


def embedded(name: str) -> Path | None:
    """The folder of the model of this name; None where the package has none."""
    return FOLDER / name if name in names() else None
