"""The demo: train a small model on embedded pictures, draw with it and with the embedded model."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.interfaces.training import display
from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

RUN_FILE = Path(__file__).with_name("demo.yaml")

_SHOWN = 3
"""How many times a picture of the grid is enlarged."""

_SEED = 100

PROMPTS = (
    "a red apple, fluent 3d",
    "a hedgehog, noto",
    "a guitar, fluent 3d",
    "a snowman, noto",
    "a doughnut, fluent 3d",
    "a cactus, noto",
    "a rocket, fluent 3d",
    "a sunflower, noto",
    "a blue apple, fluent 3d",
    "a purple cat face, noto",
    "an octopus, fluent 3d",
    "a soccer ball, noto",
    "a waving hand, dark skin tone",
    "a green umbrella, fluent 3d",
    "a tree left of a house, noto",
    "a pizza right of a banana, fluent 3d",
)
"""What the embedded model is asked for."""


def run(out: Path, minutes: float) -> None:
    """Train the model of demo.yaml in `out` and draw grid.png, loss.png, film.png and prompts.png there.

    A demo that was stopped goes on where it was; one that is finished draws again.

    Raises:
        InvalidInput: no time to train, or the folder holds another run.
    """
    if not 0.05 <= minutes <= 1440:
        raise InvalidInput(f"{minutes} is not from 0.05 to 1440", where="minutes")
    settings = read(RUN_FILE, [f"minutes={minutes}"])
    say = sys.stderr.write
    say(f"Training on {len(settings.build_data())} pictures for {minutes:g} minutes, from scratch.\n")
    with display(settings) as observe:
        model = train(settings, out, observe)
    say("Drawing every concept in both styles, and one picture appearing.\n")
    labels = model.conditioner.labels
    grid(model, labels["concept"], labels["style"]).save(out / "grid.png")
    film(model, labels["concept"][0], labels["style"][0]).save(out / "film.png")
    made = ["grid.png", "film.png", "loss.png"]
    say("Drawing with the model that comes with the package.\n")
    prompts(PROMPTS).save(out / "prompts.png")
    made.append("prompts.png")
    print("\n".join(str(out / name) for name in made))
    say(
        "\nTry next:\n"
        f'  sfumato generate {out}/model --concept "red apple" --style "fluent 3d" --count 4 --seed 7\n'
        f"  sfumato generate {out}/model --concept penguin --style noto --sampler heun --film 8\n"
        f"  sfumato train {out}/run.yaml --set minutes=30 --out runs/longer\n"
    )


def grid(model: Model, concepts: list[str], styles: list[str]) -> Image.Image:
    """A sheet of every concept in every style, side by side, with its name below."""
    said = [(concept, style) for concept in concepts for style in styles]
    drawn = generate(
        model,
        seeds=[_SEED + i // len(styles) for i in range(len(said))],
        concept=[concept for concept, _ in said],
        style=[style for _, style in said],
    ).tensor
    pairs = drawn.view(len(concepts), len(styles), *drawn.shape[1:])
    return captioned([torch.cat(list(pair), dim=2) for pair in pairs], concepts)


def prompts(said: Sequence[str]) -> Image.Image:
    """A sheet of what the embedded model makes of prompts."""
    drawn = generate(load(), seeds=[_SEED + i for i in range(len(said))], prompt=list(said)).tensor
    return captioned(list(drawn), said)


def captioned(pictures: Sequence[Tensor], names: Sequence[str], columns: int = 8) -> Image.Image:
    """A sheet of pictures (C, H, W) of one size, enlarged, with up to two lines of words below each."""
    height, width = (edge * _SHOWN for edge in pictures[0].shape[1:])
    lines = [textwrap.wrap(name, max(8, width // 8))[:2] for name in names]
    gap, label = 14, 5 + 17 * max(map(len, lines))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (picture, words) in enumerate(zip(pictures, lines, strict=True)):
        left = gap + (number % columns) * (width + gap)
        top = gap + (number // columns) * (height + label + gap)
        sheet.paste(_enlarged(picture), (left, top))
        for line, text in enumerate(words):
            draw.text((left + width / 2, top + height + 4 + 17 * line), text, "black", font, "ma")
    return sheet


def film(model: Model, concept: str, style: str, frames: int = 9) -> Image.Image:
    """One picture appearing out of noise, first frame to last."""
    kept = generate(model, seed=_SEED, concept=concept, style=style, film=frames - 1).film
    assert kept is not None
    start = model.process.prior((1, *model.space.shape(*kept.shape[-2:])), Noise([_SEED]))
    return _enlarged(torch.cat([model.space.decode(start)[0], *kept[0]], dim=2))


def _enlarged(picture: Tensor) -> Image.Image:
    image = to_image(picture)
    return image.resize((image.width * _SHOWN, image.height * _SHOWN), Image.Resampling.BICUBIC)
