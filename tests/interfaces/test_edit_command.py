"""The command that changes a picture by words: made over, in a part, or with its words changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.data.emoji import Emoji
from sfumato.data.picture import picture_of
from sfumato.editing.invert import invert
from sfumato.generation.images import to_image
from sfumato.interfaces.cli import main
from sfumato.interfaces.replay import replay


@pytest.fixture(scope="module")
def apple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    to_image(Emoji(size=64, concepts=("red apple",))[0].image).save(folder / "apple.png")
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    left.save(folder / "left.png")
    return folder / "apple.png"


def edited(capsys: pytest.CaptureFixture[str], *words: object) -> Path:
    assert main(["edit", *map(str, words), "--json"]) == 0
    return Path(json.loads(capsys.readouterr().out)["path"])


def read(path: Path) -> Tensor:
    return picture_of(path, 3, "picture")


def test_a_picture_is_made_over_and_a_part_leaves_the_rest_as_it_was(
    apple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (apple, "a green apple, noto", "--steps", 4, "--seed", 3, "--out", tmp_path)
    whole = edited(capsys, *asked, "--strength", 0.5)
    assert replay(whole).identical
    same = sfumato.generate(
        "a green apple, noto",
        seed=3,
        steps=4,
        edit={"name": "image_to_image", "image": str(apple), "strength": 0.5},
    )
    assert read(whole).allclose(picture_of(same.images[0], 3, "picture"))
    part = edited(capsys, *asked, "--mask", apple.with_name("left.png"))
    assert torch.equal(read(part)[:, :, 32:], read(apple)[:, :, 32:])
    assert not torch.equal(read(part)[:, :, :32], read(apple)[:, :, :32])


def test_the_same_words_give_the_picture_back_and_others_change_it(
    apple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--from", "a red apple, noto", "--steps", 6, "--out", tmp_path)
    again = edited(capsys, apple, "a red apple, noto", *asked)
    found = invert(sfumato.load(), str(apple), prompt="a red apple, noto", steps=6, size=(64, 64))
    wanted = found.make(prompt=["a red apple, noto"] * 2, seeds=[0, 0]).tensor[1]
    assert torch.allclose(read(again), wanted.clamp(-1, 1), atol=2 / 255)
    other = edited(capsys, apple, "a blue apple, noto", *asked, "--keep", 0.2, "--only", "apple")
    assert (read(other) - read(again)).abs().max() > 0.1
    # Both are written: the picture as it was found again, and what became of it.
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert replay(other).identical
    nulled = edited(
        capsys, apple, "a red apple, noto", *asked[:-2], "--null", "prompt", "--out", tmp_path / "n"
    )
    assert (read(nulled) - read(apple)).square().mean() < (read(other) - read(apple)).square().mean()


def test_what_makes_no_sense_is_refused_before_any_work(apple: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    assert main(["edit", str(apple), "a cat", "--only", "cat", *out]) == 2
    assert main(["edit", str(apple), "a cat", "--from", "a dog", "--null", "tex", *out]) == 2
    assert main(["edit", str(apple), "a cat", "--from", "a dog", "--mask", str(apple), *out]) == 2
    assert (
        main(["edit", str(apple), "a cat", "--from", "an apple", "--only", "dog", "--steps", "2", *out]) == 2
    )
    assert main(["edit", str(tmp_path / "none.png"), "a cat", *out]) == 2
    assert not list(tmp_path.iterdir())
