"""A control beside a model, wherever a model is named; and the command that draws along a hint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import sfumato
from sfumato.checkpoints import native
from sfumato.checkpoints.load import load
from sfumato.control.controlnet import ControlNet
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.generation.images import to_image
from sfumato.generation.walk import Walk
from sfumato.interfaces.cli import main
from sfumato.interfaces.controlling import _scale
from sfumato.interfaces.replay import replay
from sfumato.model import Model
from sfumato.registry import describe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control of the embedded model that does something, alone, and a picture."""
    made = tmp_path_factory.mktemp("control")
    torch.manual_seed(0)
    control = ControlNet.of(sfumato.load().denoiser.network, factor=8)
    alone = Model.from_description({"control": describe(control)})
    alone.denoiser.network.load_state_dict(control.state_dict())
    for part in [*alone.denoiser.network.zero_convs, alone.denoiser.network.middle_block_out]:
        torch.nn.init.normal_(part[0].weight, std=0.05)
    torch.nn.init.normal_(alone.denoiser.network.input_hint_block[-1].weight, std=0.1)
    native.save(alone, made / "edges")
    to_image(Emoji(size=64, concepts=("red apple",))[0].image).save(made / "apple.png")
    return made


def run(*words: object) -> int:
    return main([str(word) for word in words])


def drawn(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def test_the_command_draws_the_hint_and_along_it_and_the_picture_can_be_made_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (folder / "edges", folder / "apple.png", "a red apple, noto", "--steps", 2, "--seed", 5)
    assert run("control", *words, "--detect", "canny", "--out", tmp_path, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    hint, picture = (Path(line["path"]) for line in lines)
    assert hint.name == "apple-canny.png"
    assert drawn(hint) != drawn(folder / "apple.png")
    assert replay(picture).identical
    plain = sfumato.generate("a red apple, noto", seed=5, steps=2).images[0]
    assert drawn(picture) != plain.convert("RGB").tobytes()
    assert (
        run("control", *words[:1], hint, *words[2:], "--strength", 0, "--out", tmp_path / "none", "--json")
        == 0
    )
    silent = Path(json.loads(capsys.readouterr().out)["path"])
    assert drawn(silent) == plain.convert("RGB").tobytes()


def test_a_part_of_the_walk_is_told_in_fractions_of_its_steps(folder: Path) -> None:
    model = load(f"emoji +hint={folder / 'edges'}")
    walk = Walk.plan(model, None, None, None, 4, None, None)
    asked = {"strength": 0.5, "start": 0.25, "end": 0.75, "guess": False}
    told = _scale(asked, walk)
    ratios = [float(walk.path(t).ratio) for t in walk.times(walk.path, 4).tolist()]
    heard = [told["low"] < ratio <= told["high"] for ratio in ratios[:-1]]
    assert heard == [False, True, True, False]
    assert set(_scale({**asked, "start": 0, "end": 1}, walk)) == {"name", "strength"}
    assert _scale({**asked, "guess": True}, walk)["conditional"] is True
    with pytest.raises(InvalidInput, match="no part of the walk"):
        _scale({**asked, "start": 0.8}, walk)


def test_controls_stand_beside_a_model_by_name(folder: Path) -> None:
    place = f"emoji +edges={folder / 'edges'} +mask={folder / 'edges'}"
    model = load(place)
    assert {"edges", "mask", "prompt"} <= set(model.conditioner.inputs)
    assert model.card["source"] == place
    assert len(model.denoiser.network.controls) == 2
    # A model that was trained with a control lends it.
    native.save(load(f"emoji +hint={folder / 'edges'}"), folder / "whole")
    lent = load(f"emoji +hint={folder / 'whole'}")
    own = load(folder / "edges").denoiser.network.state_dict()
    assert all(torch.equal(own[k], v) for k, v in lent.denoiser.network.controls[0].state_dict().items())
    with pytest.raises(InvalidInput, match="without a control"):
        load("emoji +hint=emoji")


def test_what_makes_no_sense_is_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    words = ("control", folder / "edges", folder / "apple.png", "a cat", "--out", tmp_path)
    assert run(*words, "--start", 0.9, "--end", 0.1) == 2
    assert run(*words, "--detect", "cany") == 2
    assert run("control", folder / "none", folder / "apple.png", "a cat", "--out", tmp_path) == 2
    assert run("control", folder / "edges", folder / "none.png", "a cat", "--out", tmp_path) == 2
    assert not [path for path in tmp_path.rglob("*.png") if "canny" not in path.name]
