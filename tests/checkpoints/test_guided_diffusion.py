"""guided-diffusion: outputs of the published code, names and shapes of every published network, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_recipes import KEYS, hollow, log_variance, recorded, told
from network_recipes import randomised

import sfumato
from sfumato.checkpoints.guided_diffusion import TRAINED, report
from sfumato.checkpoints.load import load
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.level import Level
from sfumato.interfaces.cli import main
from sfumato.networks.adm import ADM, PUBLISHED
from sfumato.networks.adm_classifier import ADMClassifier

CLASSIFIERS = ("imagenet_128", "imagenet_256", "imagenet_512", "imagenet_64")
IMPROVED_UPSAMPLER: dict[str, Any] = {
    **{"in_channels": 6, "out_channels": 6, "channels": 192, "multipliers": (1, 1, 2, 2, 4, 4)},
    **{"attention": (16, 32), "heads": 4, "classes": 1000, "scale_shift": True},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["guided", "improved", "upsampler"])
def test_what_the_published_code_says_of_x0_and_variance(name: str, zipped: bool, tmp_path: Path) -> None:
    case = recorded(name)
    path = tmp_path / "model.pt"
    torch.save(case.weights, path, _use_new_zipfile_serialization=zipped)
    model = load(path, **case.settings)
    k = case.tensors["t"]
    t = ((k + 1).double() / model.process.steps).view(-1, 1, 1, 1)
    said: dict[str, Any] = {}
    if "y" in case.tensors:
        said["label"] = [str(int(y)) for y in case.tensors["y"]]
    if "low_res" in case.tensors:
        said["low_res"] = list(case.tensors["low_res"])
    with torch.no_grad():
        out = model.denoiser(case.tensors["x"], model.process(t), model.conditioner(3, **said))
    torch.testing.assert_close(out.x0, case.tensors["x0"], rtol=1e-5, atol=2e-5)
    assert out.variance is not None
    spread = log_variance(model, out.variance, k).float()
    torch.testing.assert_close(spread, case.tensors["log_variance"], rtol=1e-5, atol=1e-5)


def test_logits_of_the_published_classifier(tmp_path: Path) -> None:
    case = recorded("classifier")
    path = tmp_path / "classifier.pt"
    torch.save(case.weights, path)
    model = load(path, **case.settings)
    assert model.describe()["classifies"] == "label"
    t = ((case.tensors["t"] + 1).double() / 1000).view(-1, 1, 1, 1)
    level: Level[torch.Tensor] = model.process(t)
    with torch.no_grad():
        logits = model.denoiser.logits(case.tensors["x"], level)  # type: ignore[operator]
    torch.testing.assert_close(logits, case.tensors["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_a_published_network_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = ADM(**PUBLISHED.get(name, IMPROVED_UPSAMPLER))
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert told(shapes) == KEYS[name], "not the names and shapes of the published code"
    found = report(hollow(tmp_path / f"{name}.safetensors", shapes))
    keys = found.keys()
    assert keys.exact
    assert len(keys.matched) == len(shapes)
    assert found.published == name
    settings = dict(found.description["network"])
    assert settings.pop("name") == "adm"
    same = {key: getattr(network, key) for key in settings}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()} == same
    assert found.card["size"] == [TRAINED[name]["size"]] * 2


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_published_classifier_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = ADMClassifier.published(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert told(shapes) == KEYS[f"classifier_{name}"]
    found = report(hollow(tmp_path / "c.safetensors", shapes))
    assert found.keys().exact
    assert found.published == name
    settings = dict(found.description["network"])
    assert settings.pop("name") == "adm_classifier"
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()} == {
        key: getattr(network, key) for key in settings
    }


def test_the_noise_of_published_networks() -> None:
    """As their pages say: cosine of 1000 at 64 pixels, of 4000 in improved-diffusion, linear of 1000 else."""
    cosine = {name: each.get("steps", 1000) for name, each in TRAINED.items() if "schedule" in each}
    assert cosine == {
        "imagenet_64": 1000,
        "improved_cifar": 4000,
        "improved_imagenet_64": 4000,
        "improved_imagenet_64_classes": 4000,
    }
    assert {name for name, each in TRAINED.items() if each.get("rescaled")} == {
        "improved_cifar",
        "improved_imagenet_64",
    }


def _small(**more: Any) -> ADM:
    torch.manual_seed(1)
    usual: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
    return ADM(**{**usual, "heads": 2, "out_channels": 6, "scale_shift": True, **more})


@pytest.mark.parametrize("updown", [True, False])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (0.5, 1, 1)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_settings_of_any_network_are_told_by_its_shapes(
    updown: bool, multipliers: tuple[float, ...], blocks: int, tmp_path: Path
) -> None:
    with torch.device("meta"):
        network = _small(resblock_updown=updown, multipliers=multipliers, blocks=blocks, channels=64)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = report(hollow(tmp_path / "n.safetensors", shapes), heads=2)
    assert found.keys().exact
    network_of = found.description["network"]
    assert tuple(network_of["multipliers"]) == multipliers
    assert network_of["blocks"] == blocks
    if len(multipliers) > 1:
        assert network_of["resblock_updown"] is updown


def test_what_is_saved_generates_what_it_did_and_is_inspected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Averaged weights of distributed training, through every entrance."""
    network = randomised(_small(classes=3))
    path = tmp_path / "ema_0.9999_010000.pt"
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    settings: dict[str, Any] = {"heads": 2, "labels": ["cat", "dog", "owl"], "size": 8}
    model = sfumato.load(path, **settings)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 800.0])
    vector = torch.eye(3)[[2, 0]]
    with torch.no_grad():
        ours = model.denoiser.network(x, time, Condition(vector=vector))
        assert torch.equal(ours, network(x, time, Condition(vector=vector)))
    assert model.card["sampler"] == {"name": "ancestral", "variance": "learned"}
    picture = sfumato.generate(model, seed=3, steps=4, label="owl").tensor
    assert not torch.equal(picture, sfumato.generate(model, seed=3, steps=4, label="cat").tensor)
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == "guided_diffusion"
    assert "heads" in shown["missing"]
    assert "heads=4" in shown["advice"]


def test_inspect_tells_of_a_published_network_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        network = ADM.published("imagenet_64_to_256")
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    path = hollow(tmp_path / "64_256_upsampler.safetensors", shapes)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in (
        "an upsampler of guided-diffusion",
        "imagenet_64_to_256",
        "567 of 567 tensors fit",
        "low_res",
    ):
        assert word in shown


def test_what_does_not_fit_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    weights = dict(_small().state_dict())
    weights["middle_block.0.in_layers.0.wieght"] = weights.pop("middle_block.0.in_layers.0.weight")
    torch.save(weights, path)
    with pytest.raises(KeyMismatch, match=r"1 missing: .*in_layers\.0\.weight.*1 unexpected: .*wieght"):
        load(path, heads=2, size=8)
    with pytest.warns(UserWarning, match="1 missing"):
        model = load(path, heads=2, size=8, strict=False)
    assert torch.equal(model.denoiser.network.out[2].bias, weights["out.2.bias"])  # type: ignore[index]
    weights = dict(_small().state_dict())
    weights["output_blocks.0.0.out_layers.3.bias"] = torch.zeros(9)
    torch.save(weights, path)
    with pytest.raises(KeyMismatch, match=r"1 other shapes: .*\[64\], got \[9\]"):
        load(path, heads=2, size=8)


def test_what_nobody_tells_and_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(_small(classes=3).state_dict(), path)
    with pytest.raises(InvalidInput, match="how many heads attend"):
        load(path)
    with pytest.raises(InvalidInput, match="no such setting"):
        load(path, head=2)
    with pytest.raises(InvalidInput, match="2 labels for 3 classes"):
        load(path, heads=2, labels=["a", "b"])
    torch.save(_small(in_channels=6).state_dict(), path)
    with pytest.raises(InvalidInput, match="an upsampler does not tell its size") as caught:
        load(path, heads=2)
    assert "factor=4" in caught.value.do
    torch.save(_small(in_channels=5).state_dict(), path)
    with pytest.raises(InvalidInput, match="5 channels in and 6 out"):
        load(path, heads=2)
    weights = {name: tensor for name, tensor in _small().state_dict().items() if ".out_layers." not in name}
    torch.save(weights, path)
    with pytest.raises(InvalidInput, match="not those of a network of guided-diffusion"):
        load(path, heads=2)
