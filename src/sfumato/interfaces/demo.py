"""The demo: train a small model on embedded pictures, draw with it, and show how."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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


def run(out: Path, minutes: float) -> None:
    """Train the model of demo.yaml in `out` and draw grid.png, loss.png and film.png there.

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
    print(f"{out / 'grid.png'}\n{out / 'film.png'}\n{out / 'loss.png'}")
    say(
        "\nTry next:\n"
        f'  sfumato generate {out}/model --concept "red apple" --style "fluent 3d" --count 4 --seed 7\n'
        f"  sfumato generate {out}/model --concept penguin --style noto --sampler heun --film 8\n"
        f"  sfumato train {out}/run.yaml --set minutes=30 --out runs/longer\n"
    )


def grid(model: Model, concepts: list[str], styles: list[str], columns: int = 8) -> Image.Image:
    """A sheet of every concept in every style, side by side, with its name below."""
    said = [(concept, style) for concept in concepts for style in styles]
    drawn = generate(
        model,
        seeds=[_SEED + i // len(styles) for i in range(len(said))],
        concept=[concept for concept, _ in said],
        style=[style for _, style in said],
    ).tensor
    cells = drawn.view(len(concepts), len(styles), *drawn.shape[1:])
    side = drawn.shape[-1] * _SHOWN
    width, height, gap, label = len(styles) * side, side, 14, 22
    rows = -(-len(concepts) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (concept, cell) in enumerate(zip(concepts, cells, strict=True)):
        left = gap + (number % columns) * (width + gap)
        top = gap + (number // columns) * (height + label + gap)
        sheet.paste(_enlarged(torch.cat(list(cell), dim=2)), (left, top))
        draw.text((left + width / 2, top + height + label / 2), concept, "black", font, "mm")
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
