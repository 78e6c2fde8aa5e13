"""sfumato detect: PNGs that say what the detector says, and one sentence on what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.control.detectors.canny import Canny
from sfumato.control.detectors.keypoints import Keypoints
from sfumato.control.detectors.scribble import Scribble
from sfumato.data.emoji import Emoji
from sfumato.data.picture import picture_of
from sfumato.interfaces.cli import main


@pytest.fixture
def apple(tmp_path: Path) -> Path:
    Emoji(("noto",), concepts=("red apple",)).picture(0).save(tmp_path / "apple.png")
    return tmp_path / "apple.png"


def test_the_hint_is_written_as_a_png(
    apple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hints" / "edges.png"
    assert main(["detect", "canny", str(apple), str(out), "--set", "low=50", "--set", "high=90"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert torch.equal(picture_of(out, 1, "out"), Canny(50, 90)(apple))
    assert main(["detect", "palette", str(apple), str(out), "--set", "cells=4"]) == 0
    assert Image.open(out).mode == "RGB"  # replaced
    assert [path.name for path in out.parent.iterdir()] == ["edges.png"]


def test_chance_needs_a_seed(apple: Path, tmp_path: Path) -> None:
    words = [
        "detect",
        "scribble",
        str(apple),
        str(tmp_path / "a.png"),
        "--set",
        "edges={name: canny, low: 50}",
    ]
    assert main([*words, "--set", "thinnest=8", "--set", "thickest=200"]) == 0
    detector = Scribble(Canny(low=50), thinnest=8, thickest=200)
    assert torch.equal(picture_of(tmp_path / "a.png", 1, "a"), detector(apple))
    assert main([*words, "--set", "thinnest=8", "--set", "thickest=200", "--seed", "3"]) == 0
    assert torch.equal(picture_of(tmp_path / "a.png", 1, "a"), detector(apple, "3:apple.png"))
    assert not torch.equal(detector(apple), detector(apple, "3:apple.png"))


def test_key_points_are_read_from_json(tmp_path: Path) -> None:
    told = {"points": [{"x": 0.5, "y": 0.25, "label": "cat"}], "size": [40, 60]}
    (tmp_path / "points.json").write_text(json.dumps(told))
    out = tmp_path / "points.png"
    assert main(["detect", "keypoints", str(tmp_path / "points.json"), str(out), "--set", "radius=30"]) == 0
    assert torch.equal(picture_of(out, 3, "out"), Keypoints(radius=30)(told))


def test_a_folder_becomes_a_folder_of_the_same_names(
    apple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pictures"
    (source / "more").mkdir(parents=True)
    for name in ("10.png", "9.png", "more/a.png"):
        Image.open(apple).save(source / name)
    assert main(["detect", "luminance", str(source), str(tmp_path / "grey")]) == 0
    names = ["9.png", "10.png", "more/a.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "grey" / name) for name in names]
    assert Image.open(tmp_path / "grey" / "more" / "a.png").mode == "L"
    poses = tmp_path / "poses"
    poses.mkdir()
    (poses / "x_keypoints.json").write_text(json.dumps({"people": [], "size": [8, 8]}))
    assert main(["detect", "keypoints", str(poses), str(tmp_path / "drawn")]) == 0
    assert Image.open(tmp_path / "drawn" / "x_keypoints.png").size == (8, 8)


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    apple: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty, twice = tmp_path / "out.png", tmp_path / "empty", tmp_path / "twice"
    empty.mkdir()
    twice.mkdir()
    for name in ("a.png", "a.webp"):
        Image.new("RGB", (8, 8)).save(twice / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.json").write_text("{}")
    for words, said in (
        (["cany", apple, out], "did you mean canny"),
        (["canny", tmp_path / "none.png", out], "no such file"),
        (["canny", apple, tmp_path / "out.jpg"], "end it in .png"),
        (["canny", apple, apple], "replaced by its own hint"),
        (["canny", tmp_path / "bad.png", out], "not a PNG, JPEG or WEBP"),
        (["canny", empty, out], "holds no pictures"),
        (["canny", twice, tmp_path / "to"], "have one name"),
        (["canny", apple, out, "--set", "lo=3"], "no setting 'lo'"),
        (["canny", apple, out, "--set", "low=x"], "is not a float"),
        (["canny", apple, out, "--set", "low"], "not name=value"),
        (["keypoints", tmp_path / "bad.json", out], "tells no key points"),
        (["depth", apple, out], "needs a model"),
        (["canny", apple, apple / "x.png"], "cannot be made"),
    ):
        assert main(["detect", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not out.exists()
    assert not (tmp_path / "to").exists()


def test_detectors_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "detector"]) == 0
    listed = capsys.readouterr().out
    names = "alpha canny depth hough keypoints luminance normals palette pose scribble segmentation soft_edge"
    assert all(f"  {name} " in listed for name in names.split())
    assert main(["show", "canny"]) == 0
    assert "spread" in capsys.readouterr().out
