"""The scripts in examples/ that edit with the model in the package: each runs, and draws what it says."""

from __future__ import annotations

import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.data.picture import picture_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def drawn(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What a script writes, by file name."""
    monkeypatch.setattr(sys, "argv", [name, str(out)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    found = {path.stem: picture_of(path, 3, "picture") for path in sorted(out.glob("*.png"))}
    assert all(picture.std() > 0.05 for picture in found.values())
    return found


def hue(picture: Tensor) -> Tensor:
    """Mean red, green and blue of what is no ground."""
    solid = (picture < 0.86).any(0)
    return picture[:, solid].mean(1)


def test_edit_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn("edit_words", tmp_path, monkeypatch)
    assert set(found) == {"words_source", "words_swapped", "words_local", "words_redder"}
    source, swapped = hue(found["words_source"]), hue(found["words_swapped"])
    # More green against red than in the source.
    assert swapped[1] - swapped[0] > source[1] - source[0]
    assert not torch.equal(found["words_redder"], found["words_source"])


def test_where_words_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = drawn("where_words_are", tmp_path, monkeypatch)
    assert set(found) == {"where", "where_apple", "where_cat"}
    assert not torch.equal(found["where_apple"], found["where_cat"])
    assert capsys.readouterr().out.count("of the picture") == 2


def test_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn("regions", tmp_path, monkeypatch)["regions"]
    left, right = hue(found[:, :, :32]), hue(found[:, :, 32:])
    # A lemon is greener, which with red is yellow, than an apple.
    assert left[1] > right[1]


def test_real_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = drawn("real_picture", tmp_path, monkeypatch)
    assert set(found) == {"real_given", "real_again", "real_edited"}
    error = (found["real_again"] - found["real_given"]).square().mean()
    assert error < (found["real_edited"] - found["real_given"]).square().mean()
    assert "dB" in capsys.readouterr().out


def test_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn("between", tmp_path, monkeypatch)
    strip = [found[f"between_{number}"] for number in range(8)]
    with Image.open(tmp_path / "between_0.png") as picture:
        assert picture.size == (64, 64)
    steps = [(a - b).square().mean() for a, b in pairwise(strip)]
    assert max(steps) < (strip[0] - strip[-1]).square().mean()
