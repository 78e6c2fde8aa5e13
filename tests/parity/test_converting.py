"""`sfumato convert`: what a user types, from one published format to another and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm_recipes import one_file, vq
from safetensors.torch import save_file
from sd_recipes import unet

from sfumato.checkpoints import sd_unet_keys
from sfumato.checkpoints.load import load
from sfumato.generation.generate import generate
from sfumato.interfaces.cli import main


def test_a_folder_becomes_one_file_and_a_folder_again(
    cases: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = cases("sd1")
    folder, file, again, own = case.folder, tmp_path / "one.safetensors", tmp_path / "b", tmp_path / "c"
    for source, target, form in (
        (folder, file, "compvis"),
        (file, again, "diffusers"),
        (again, own, "native"),
    ):
        assert main(["convert", str(source), str(target), "--format", form, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["to"], told["format"]) == (str(target), form)
        held = [each for part in case.model.modules().values() for each in part.parameters()]
        assert told["parameters"] >= sum(each.numel() for each in held)
    # A single file holds no walk: all are asked for the same one.
    walk = {"sampler": "ddim", "times": "trailing", "steps": 2, "guidance": 3.0}
    told = {"prompt": "a red apple", "negative": {"prompt": "dog"}, "size": 32, "seed": 5, **walk}
    expected = generate(case.model, **told).tensor
    for place in (file, again, own):
        assert torch.equal(generate(load(place), **told).tensor, expected), place


def test_what_a_file_does_not_tell_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, file, own = unet(in_channels=3, out_channels=3), tmp_path / "f.safetensors", tmp_path / "own"
    table = torch.randn(4, 64, generator=torch.Generator().manual_seed(9))
    save_file(
        one_file(sd_unet_keys.from_diffusers(network.state_dict()), vq(), {"embedding.weight": table}), file
    )
    labels = "labels=[tench, goldfish, shark]"
    assert main(["convert", str(file), str(own), "--set", "lables=[a]"]) == 2
    assert "labels" in capsys.readouterr().err
    assert main(["convert", str(file), str(own), "--set", labels]) == 0
    assert load(own).conditioner.labels["label"][:3] == ["tench", "goldfish", "shark"]
    condition = load(own).conditioner(1, label="goldfish")
    assert torch.equal(condition.tokens[0, 0], table[1])


@pytest.mark.parametrize(
    "name, form, said",
    [
        ("there", "native", "is there already"),
        ("new", "compvis", "ends in .safetensors"),
        ("new", "difusers", "diffusers"),
        ("new.safetensors", "compvis", "no such file"),
    ],
)
def test_targets_and_formats_are_refused_before_work(
    name: str, form: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / name), "--format", form]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
