"""docs/emoji.md and its pictures, from what benchmarks/emoji.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latent_page import table
from PIL import Image

_HEAD = """# The embedded model, measured

`emoji` draws what it is asked for at 64 pixels: `sfumato generate "a red apple, fluent 3d"`. It was
trained on the embedded set by `examples/train_emoji.yaml` and measured by `python
benchmarks/emoji.py`, at guidance 2 in 25 steps where nothing else is said; 95 % intervals in brackets.
Guidance 2 and 8 steps are its defaults: the knees of the sweeps below.

What is drawn is judged by `emoji_judge`, two small towers over frozen features
(`examples/train_judge.yaml`), which was trained on the same pictures; how often it is right itself
stands first, and beside each score that of real pictures. The feature network of distances is
EfficientNet-lite0, so that they are not FID numbers.

![Training](emoji_training.png)

The loss on held-out concepts, in five bands of noise; grey lines stand between the legs of the training. The
second leg asked more of low noise. From the fourth on, words are drafted first, and what a caption of the
training looks like is learnt by heart: that is what draws known things well, and it costs what was not
known, above all at high noise.

"""

_SECTIONS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "The judge",
        "judged",
        "Pairs of a picture and one wording of its caption: how often its own is the first, or among "
        "the first five, of a hundred. Some of 100 others name the same thing in other words, or are "
        "as true of the picture.",
        (),
    ),
    (
        "Is it what was asked for?",
        "agreement",
        "A concept is found if the judge puts it among the first 5 of 100 concepts in that style; a "
        "style if the picture is nearer to its concept in that style than in the other; a colour if "
        "the hue of most of the drawing is within 30 degrees of the word's; left and right if the "
        "halves fit the two things in that order rather than the other.",
        (
            "training_captions",
            "held-out_concepts",
            "in_a_style_never_shown",
            "colours_pairs_of_training",
            "colours_new_pairs",
            "side_by_side_new_scenes",
        ),
    ),
    (
        "How near to the real pictures",
        "distance",
        "Fréchet distance and KID, 1,000 pictures on each side, 346 of those held out; what the "
        "autoencoder alone makes of the real ones, and what real pictures are from others, are the "
        "floor.",
        (),
    ),
    (
        "Does it copy?",
        "memory",
        "Cosine to the nearest picture of training, by features; a copy is nearer than nineteen of "
        "twenty pictures of training are to what the autoencoder makes of themselves. Asked for what "
        "it was trained on it should draw that; asked for what it never saw it should not.",
        ("memory_training_captions", "memory_held-out_concepts", "memory_in_a_style_never_shown"),
    ),
    (
        "Guidance",
        "guidance",
        "A hundred training captions. Beyond 3 fewer concepts are found and the distance grows.",
        (),
    ),
    (
        "Samplers and steps",
        "steps",
        "The same captions at guidance 2; Heun calls the network twice a step. From 6 steps on nothing is "
        "gained, by the judge or by eye. "
        "Seconds are those of a core of a machine that was shared with other work, and comparable roughly.",
        (),
    ),
)
"""Heading, part, what is said of it, and its pictures."""


def curves(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Agreement against guidance, and against seconds a picture for each sampler."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.4))
    scales = [float(scale) for scale in found["guidance"]]
    rows = list(found["guidance"].values())
    axes[0].errorbar(scales, *_points(rows, "concept"), marker="o", capsize=3, label="concept in first 5")
    axes[0].set(xlabel="guidance", ylabel="share of concepts found", ylim=(0, 1))
    twin = axes[0].twinx()
    twin.plot(scales, [row["frechet"][0] for row in rows], "s--", color="tab:red", label="Fréchet")
    twin.set_ylabel("Fréchet distance (red)")
    for axis, key, label in (
        (axes[1], "concept", "share of concepts found"),
        (axes[2], "frechet", "Fréchet"),
    ):
        for sampler in dict.fromkeys(row["sampler"] for row in found["steps"].values()):
            mine = [row for row in found["steps"].values() if row["sampler"] == sampler]
            axis.plot(
                [row["seconds a picture"] for row in mine], [row[key][0] for row in mine], "o-", label=sampler
            )
        axis.set(xlabel="seconds a picture", ylabel=label, xscale="log")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def training(legs: Sequence[dict[str, Any]], path: Path) -> None:
    """The held-out loss by band of noise, over the pictures seen in all legs of the training."""
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 4.4))
    seen, before = [], 0
    for leg in (each for each in legs if each.get("objective", "denoising") == "denoising"):
        seen += [[before + images, *bands] for images, *bands in leg["held-out"]]
        before += leg["images"]
        axis.axvline(before, color="lightgrey")
    for band in range(1, len(seen[0])):
        axis.plot([row[0] for row in seen], [row[band] for row in seen], label=f"band {band}")
    axis.set(xlabel="pictures seen", ylabel="loss on held-out concepts", yscale="log")
    axis.legend(title="from least noise to most")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


_TRIED = """## What it cannot, and what was tried

The right concept / style of a hundred training captions (16 steps, guidance 2) after each leg of
the training: .42 / .74; .55 / .76, with more of low noise; .57 / .81, with a decoder taught on
noisy latents; .71 / .79, with drafts and Muon for a memory of what captions look like; .92 / .85,
with drafts of three quarters single things, words and drafts then held.

- The style of real pictures that go through the autoencoder alone is found in .94; with noise of .1
  of the latents' deviation in .87, of .2 in .91: that bounds the pictures' .81. The decoder learnt
  to the pixel, on noisy latents, then to the eye and with a discriminator: concepts of made
  pictures from .46 to .57, styles from .89 to .81.
- Left and right: words say the side of all nouns of new scenes, the draft alone prefers the true
  order in .73 of cases and the network at high noise in .62, but at 28 pixels neither thing is
  drawn well enough to be told. Tried: scenes at half the pictures, drafts that attend to places,
  lessons of place in drafts and beside denoising. Next would be a draft put together of one for
  each noun, at the place that its word says.
- Drafts of words never seen are trusted, so that held-out concepts are drawn as what they resemble.
"""


def write(found: dict[str, dict[str, Any]], root: Path, out: Path) -> None:
    """The page and its pictures."""
    parts = []
    for heading, part, words, pictures in _SECTIONS:
        for picture in pictures:
            # A palette takes a quarter of the bytes.
            Image.open(root / f"{picture}.png").quantize(256).save(
                out / f"emoji_{picture}.png", optimize=True
            )
        shown = "\n\n".join(f"![{name.replace('_', ' ')}](emoji_{name}.png)" for name in pictures)
        parts.append(f"## {heading}\n\n{words}\n\n{table(found[part])}\n\n{shown}\n")
    curves(found, out / "emoji_curves.png")
    (out / "emoji.md").write_text(_HEAD + "\n".join(parts) + "\n![Settings](emoji_curves.png)\n\n" + _TRIED)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _points(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[list[float]]]:
    values = [row[key] for row in rows]
    return [v[0] for v in values], [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
