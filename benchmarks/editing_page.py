"""docs/editing.md, from what benchmarks/editing.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latent_page import table

_PARTS = {
    "swaps": (
        "One thing for another",
        "Fifty pairs of training concepts of one style, from the same noise. It is the other if the judge "
        "puts that among the first 5 of 100; generated alone is what the model makes of the new words from "
        "other noise, and the ceiling. Outside the blend, pictures are compared to the eye (features of "
        "VGG16) with the inside alike.",
    ),
    "inversion": (
        "Given pictures, found in the noise",
        "Twelve held-out drawings. What the autoencoder makes of a picture is as near as any walk can come "
        "to it; nearness to that is the walk's own.",
    ),
    "strokes": (
        "Strokes made into pictures",
        "SDEdit: real pictures painted over in 8 x 8 cells of 6 colours, 50 steps of `ancestral`. "
        "The more strength, the nearer to real pictures and the farther from the strokes.",
    ),
    "instruct": (
        "By instruction",
        'InstructPix2Pix on held-out people: "make the skin tone dark". The tone is right if of the thing in '
        "all six tones the one asked for is nearest; the rest is what is alike in the given picture and the "
        "one wanted, and its change the mean difference there, of 2.",
    ),
}
"""Heading and what is said under it, by part."""


def write(found: dict[str, dict[str, Any]], out: Path) -> None:
    """The page of what was found."""
    sections = []
    for part, (heading, words) in _PARTS.items():
        if part in found:
            picture = f"![{heading}](editing_{part}.png)"
            sections.append(f"## {heading}\n\n{words}\n\n{table(found[part])}\n\n{picture}\n")
    (out / "editing.md").write_text(
        "# Editing, measured\n\nOn the embedded model `emoji`, by `python benchmarks/editing.py`; 95 % "
        "intervals in brackets. What the model cannot draw no edit makes it draw: docs/emoji.md.\n\n"
        + "\n".join(sections)
    )
