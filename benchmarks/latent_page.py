"""docs/latent.md, from what benchmarks/latent.py measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

PARTS = {
    "autoencoders": (
        "Autoencoders",
        "Held-out concepts, 64 pixels, a quarter of the side in latents of 3 channels. `ae_l2` is "
        "trained on the squared error alone; `ae_kl` goes on from it with the distance to the eye "
        "and a discriminator; `vq_l2` has a codebook of 1,024.",
    ),
    "text": (
        "Text to image, in latents and in pixels",
        "Names and styles of the embedded set, 64 pixels; the same network and batch in the latents of "
        "`ae_kl` and in pixels (patches of 4), for as long: pixels see 4,900 batches where latents see "
        "4,000, as a step takes .37 s for .45 s undisturbed (the minutes of the table were shared with "
        "other work). A concept is found again if the "
        "picture's features are nearer to the real picture's than to all but four of 99 others'.",
    ),
    "boxes": (
        "Layouts",
        "Scenes of one to three of 24 things at 32 pixels from labelled boxes. A network that knows "
        "scenes finds what stands in a picture; its score on real scenes is the ceiling.",
    ),
    "map": (
        "Semantic maps",
        "Scenes from maps of the 24 things; the same judge, which also names them.",
    ),
    "depth": (
        "Depth",
        "Scenes of two to four things from labelled boxes, whose order says nothing, and pseudo-depth. "
        "Where one thing hides another, in order is what is nearer, pixel by pixel, to the drawing of the "
        "thing in front than to that of the thing behind. The sampler was chosen, out of nine settings, by "
        "other scenes than these.",
    ),
    "large": (
        "Super-resolution, 32 to 128 pixels",
        "Held-out renderings, in the latents of `ae_kl`, whose own rendering of the real pictures "
        "is the ceiling.",
    ),
    "inpainting": (
        "Inpainting",
        "Held-out emoji at 32 pixels with random holes.",
    ),
    "paired": (
        "Paired translation",
        "Noto's drawing of a held-out concept to Fluent's rendering, 32 pixels, compared with the "
        "real rendering. After 144,000 pictures the style and the colours are there and shapes are not: the "
        "loss is the same on what it was trained on, and still falls, so this is too short a training and "
        "no lack of pairs.",
    ),
}
"""Heading and what is said under it, by part."""


def write(found: dict[str, dict[str, Any]], root: Path, out: Path) -> None:
    """The page and its pictures."""
    sections = []
    for part, (heading, words) in PARTS.items():
        shutil.copyfile(root / f"{part}.png", out / f"latent_{part}.png")
        picture = f"![{heading}](latent_{part}.png)"
        sections.append(f"## {heading}\n\n{words}\n\n{table(found[part])}\n\n{picture}\n")
    (out / "latent.md").write_text(
        "# Latent diffusion and its conditions, trained\n\n"
        "Every model is an example of `examples/`, trained on one CPU core for 17 minutes (layouts, maps) "
        "to an hour (autoencoders, depth), once, and measured on what it has not seen; 95 % intervals in "
        "brackets. Depth, pairs and text in pixels were trained in legs, each made longer when the one "
        "before had ended, and the rate raised again. The feature network is EfficientNet-lite0, so "
        "distances are not FID numbers. Written by `python "
        "benchmarks/latent.py`.\n\n" + "\n".join(sections)
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [f"| | {' | '.join(keys)} |", f"|---|{'---|' * len(keys)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_cell(row.get(key)) for key in keys)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        here, low, high = map(_number, value)
        return here + (f" ({low} to {high})" if low != high else "")
    return "" if value is None else value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
