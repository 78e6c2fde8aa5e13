"""Grids: every cell is the picture that generate makes of its values, and all is checked before the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.core.errors import SfumatoError
from sfumato.interfaces.cli import main
from sfumato.interfaces.grid import sheet
from sfumato.model import Model


def pixels(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def holds(page: Tensor, picture: Tensor, times: int) -> bool:
    """Whether a page shows a picture somewhere, each of its pixels as a square."""
    wanted = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    wanted = wanted.repeat_interleave(times, 1).repeat_interleave(times, 2)
    h, w = wanted.shape[1:]
    first = (page[:, : page.shape[1] - h + 1, : page.shape[2] - w + 1] == wanted[:, :1, :1]).all(0)
    return any(torch.equal(page[:, i : i + h, j : j + w], wanted) for i, j in first.nonzero().tolist())


def test_every_cell_is_what_generate_makes_of_its_values(tiny: Model) -> None:
    guidance, concepts = [1.0, 3.0], ["cat", "lemon", "red apple"]
    page = pixels(sfumato.grid(tiny, {"guidance": guidance}, {"concept": concepts}, seed=4, steps=3))
    made = {}
    for scale in guidance:
        for concept in concepts:
            told: dict[str, Any] = {"guidance": scale, "concept": concept}
            made[scale, concept] = sfumato.generate(tiny, seed=4, steps=3, **told).tensor[0]
            assert holds(page, made[scale, concept], 10)
    assert not torch.equal(made[1.0, "cat"], made[3.0, "cat"])


def test_one_axis_is_enough_and_sizes_may_be_one(tiny: Model) -> None:
    page = pixels(sfumato.grid(tiny, {"size": [8, (16, 8)]}, concept="cat", steps=2))
    for size in (8, (16, 8)):
        picture = sfumato.generate(tiny, seed=0, steps=2, size=size, concept="cat").tensor[0]
        assert holds(page, picture, 10)


def test_pictures_stand_in_reading_order_under_their_labels() -> None:
    cells = [[torch.full((3, 160, 160), value) for value in row] for row in ((-1.0, -0.5), (0.0, 0.5))]
    page = pixels(sheet(cells, ["one", "two"], ["first row", "second row"]))
    places = [(page == value).all(0).nonzero().double() for value in (0, 64, 128, 191)]
    # Black is that of the letters too; the middle of most of it is the picture's.
    (a, b), (c, d), (e, f), (g, h) = (place.median(0).values.tolist() for place in places)
    assert a == pytest.approx(c, abs=2)
    assert e == g == pytest.approx(a + 166, abs=2)
    assert b == pytest.approx(f, abs=2)
    assert d == h == pytest.approx(b + 166, abs=2)


@pytest.mark.parametrize(
    ("x", "y", "said", "message"),
    [
        ({}, None, {}, "x: is not one setting"),
        ({"steps": []}, None, {}, "x: is not one setting"),
        ({"steps": "12"}, None, {}, "x: is not one setting"),
        ({"steps": [1], "seed": [1]}, None, {}, "x: is not one setting"),
        ({"steps": [1, 2]}, {"steps": [3]}, {}, "steps: is said twice"),
        ({"steps": [1, 2]}, None, {"steps": 3}, "steps: is said twice"),
        ({"stepz": [1, 2]}, None, {}, "stepz: neither a setting nor an input of this model"),
        ({"steps": [1, 2]}, {"concept": ["cat", "hat"]}, {}, "unknown concept 'hat'"),
        ({"steps": [1, 0]}, None, {}, "steps: 0 is not a whole number from 1 to 1000"),
        ({"seed": [1, -1]}, None, {}, "seed: all pictures of a grid have one noise"),
        ({"count": [1, 2]}, None, {}, "count: a grid has one picture a cell"),
        (
            {"seed": list(range(40))},
            {"steps": list(range(1, 41))},
            {},
            "grid: 1,600 pictures, more than 1,024",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_picture(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, x: Any, y: Any, said: Any, message: str
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a picture was begun")

    monkeypatch.setattr(tiny.denoiser.network, "forward", never)
    with pytest.raises(SfumatoError) as caught:
        sfumato.grid(tiny, x, y, **said)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_new_sheet_that_says_what_it_is_of(
    tiny: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sfumato.save(tiny, tmp_path / "model")
    axes = ["--x", "guidance=1,3", "--y", "concept=[cat, red apple]", "--steps", "2", "--style", "noto"]
    for number in (1, 2):
        assert main(["grid", str(tmp_path / "model"), *axes, "--out", str(tmp_path / "out")]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert path.name == f"0000{number}-grid.png"
    with Image.open(path) as page:
        said = json.loads(page.info["grid"])
    assert said["x"] == {"guidance": [1, 3]}
    assert said["y"] == {"concept": ["cat", "red apple"]}
    assert (said["steps"], said["style"]) == (2, "noto")
    assert main(["grid", str(tmp_path / "model"), "--x", "guidance"]) == 2
    assert "--x: 'guidance' is not NAME=VALUE,VALUE" in capsys.readouterr().err
