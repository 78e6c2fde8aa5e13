"""The models that come with the package: what they say of themselves, and that they draw what is asked."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.checkpoints.embedded import FOLDER, names
from sfumato.data.emoji import STYLES, Emoji
from sfumato.data.recolored import HUES
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.interfaces.cli import main
from sfumato.model import Model

THINGS = (
    "red apple", "lemon", "banana", "watermelon", "broccoli", "ear of corn", "doughnut", "hamburger",
    "soccer ball", "evergreen tree", "penguin", "hedgehog", "pig face", "fire extinguisher", "cactus",
    "sunflower", "four leaf clover", "maple leaf", "red heart", "full moon", "snowflake", "umbrella",
    "blue book", "key",
)  # fmt: skip


@cache
def model() -> Model:
    return sfumato.load()


@cache
def judge() -> ClipFeatures:
    network = sfumato.load("emoji_judge").denoiser.network
    assert isinstance(network, ClipFeatures)
    return network


@cache
def drawn() -> Tensor:
    """Every thing in both styles."""
    said = [f"{thing}, {style}" for style in STYLES for thing in THINGS]
    return sfumato.generate(model(), prompt=said, seeds=list(range(len(said))), steps=12).tensor


@pytest.mark.parametrize("name", ["emoji", "emoji_judge"])
def test_they_are_small_and_say_what_they_are(name: str) -> None:
    assert name in names()
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) <= 30e6
    said = sfumato.load(name).card
    assert {"data", "licence", "limits", "run", "training"} <= set(said)


def test_one_line_draws_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red apple, fluent 3d", "--seed", "3"]) == 0
    picture = Image.open(capsys.readouterr().out.strip())
    assert picture.size == (64, 64)
    hue = picture.convert("RGB").resize((1, 1), box=(24, 24, 40, 44)).convert("HSV").getpixel((0, 0))
    assert isinstance(hue, tuple)
    assert min(hue[0], 255 - hue[0]) < 20  # red, of 255
    assert hue[1] > 100


def test_the_judge_tells_things_apart() -> None:
    """Real pictures of training against their names: nearly all are found."""
    data = Emoji(size=64)
    places = {(d.concept, d.style): i for i, d in enumerate(data.drawings)}
    known = [thing for thing in THINGS if (thing, STYLES[0]) in places]
    images = torch.stack([data.load(places[thing, STYLES[0]], 0).image for thing in known])
    texts = judge().texts([f"{thing}, {STYLES[0]}" for thing in known])
    right = (judge().images(images) @ texts.T).argmax(1) == torch.arange(len(known))
    assert len(known) == len(THINGS)
    assert right.double().mean() >= 0.9


@torch.no_grad()
def test_what_is_asked_for_is_drawn() -> None:
    """By the judge, among the things here: the right one comes first, far above chance."""
    found = []
    for style, images in zip(STYLES, drawn().chunk(2), strict=True):
        texts = judge().texts([f"{thing}, {style}" for thing in THINGS])
        ranks = (judge().images(images) @ texts.T).argsort(1, descending=True)
        found.append((ranks[:, :3] == torch.arange(len(THINGS))[:, None]).any(1))
    assert torch.cat(found).double().mean() >= 0.8


def test_pictures_stand_on_white() -> None:
    border = torch.cat([drawn()[..., :2, :].flatten(1), drawn()[..., -2:, :].flatten(1)], dim=1)
    assert border.median(dim=1).values.min() > 0.9


def test_color_words_are_heeded() -> None:
    words = [word for word in ("red", "orange", "green", "blue", "purple") if word in HUES]
    images = sfumato.generate(
        model(), prompt=[f"a {word} umbrella, noto" for word in words], seeds=range(len(words)), steps=12
    ).tensor
    right = 0
    for word, image in zip(words, images, strict=True):
        pixels = (image.movedim(0, -1).reshape(-1, 3) + 1) / 2
        strong = pixels[(pixels.max(1).values - pixels.min(1).values) > 0.3]
        if not len(strong):
            continue
        row = Image.fromarray((strong[None].numpy() * 255).astype("uint8")).convert("HSV")
        hues = torch.tensor([value[0] * 360 / 255 for value in row.getdata()])
        near = ((hues - HUES[word] + 180) % 360 - 180).abs() <= 35
        right += int(near.double().mean() > 0.5)
    assert right >= len(words) - 1
