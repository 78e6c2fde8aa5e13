"""Embedded models: found by name where nothing of that name is, in float32, and replayed anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.checkpoints import embedded
from sfumato.core.errors import NotFound
from sfumato.interfaces.cli import main
from sfumato.interfaces.recipe import read_recipe
from sfumato.model import Model


@pytest.fixture
def bundle(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A package with one small model in it, in 16 bits, and an empty folder to work in."""
    monkeypatch.setattr(embedded, "FOLDER", tmp_path / "package")
    sfumato.save(tiny.to(dtype=torch.float16), tmp_path / "package" / "small")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tiny


def test_a_name_is_found_in_the_package_and_computed_with_in_float32(bundle: Model) -> None:
    assert embedded.names() == ["small"]
    model = sfumato.load("small")
    assert model.card["source"] == "small"
    for name, tensor in model.denoiser.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, bundle.denoiser.network.state_dict()[name].float())
    assert next(sfumato.load("small", dtype=torch.float16).denoiser.parameters()).dtype == torch.float16
    with pytest.raises(NotFound, match="no such file or folder"):
        sfumato.load("smell")


def test_what_is_here_goes_before_what_is_in_the_package(bundle: Model) -> None:
    with torch.no_grad():
        next(bundle.denoiser.network.parameters()).zero_()
    sfumato.save(bundle, "small")
    model = sfumato.load("small")
    assert not next(model.denoiser.network.parameters()).any()
    assert model.card["source"] == "small"


def test_its_pictures_say_its_name_and_are_made_again_elsewhere(
    bundle: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "small", "--concept", "cat", "--seed", "3", "--out", "o"]) == 0
    path = capsys.readouterr().out.strip()
    assert read_recipe(path)["model"]["source"] == "small"
    assert main(["replay", path, "--out", "o", "--json"]) == 0
    assert '"identical": true' in capsys.readouterr().out


def test_of_words_before_the_options_a_model_is_told_from_a_prompt(
    bundle: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.interfaces import words

    monkeypatch.setattr(words, "DEFAULT", "small")
    Path("folder").mkdir()
    assert words.spoken([]) == ("small", {})
    assert words.spoken(["a red apple"]) == ("small", {"prompt": "a red apple"})
    assert words.spoken(["apple"]) == ("small", {"prompt": "apple"})
    assert words.spoken(["folder"]) == ("folder", {})
    assert words.spoken(["small"]) == ("small", {})
    assert words.spoken(["some/where"]) == ("some/where", {})
    assert words.spoken(["weights.safetensors"]) == ("weights.safetensors", {})
    assert words.spoken(["either/or, in red"]) == ("small", {"prompt": "either/or, in red"})
    assert words.spoken(["x" * 5000]) == ("small", {"prompt": "x" * 5000})
    assert words.spoken(["folder", "apple", "--style=noto"]) == (
        "folder",
        {"style": "noto", "prompt": "apple"},
    )
    assert words.spoken(["--style", "noto", "apple"]) == ("small", {"style": "noto", "prompt": "apple"})
