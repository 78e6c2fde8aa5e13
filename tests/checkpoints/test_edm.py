"""EDM: names both ways, settings from shapes, and the preconditioned outputs of the published code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from guided_recipes import hollow
from safetensors.torch import save_file
from score_recipes import Recorded, close, recorded
from torch import Tensor

from sfumato.checkpoints.edm import matches, read, report, settings, table, weights
from sfumato.checkpoints.load import load
from sfumato.checkpoints.translation import to_theirs
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.level import Level
from sfumato.generation.generate import generate
from sfumato.interfaces.cli import main
from sfumato.networks.adm import ADM
from sfumato.networks.adm import PUBLISHED as ADMS
from sfumato.networks.ncsnpp import PUBLISHED, NCSNpp

NAMES = ["baseline_ve", "baseline_vp", "edm_adm", "edm_pyramids", "edm_ve", "edm_vp"]


def shapes(theirs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def saved(case: Recorded, path: Path) -> Path:
    """As the refusal of a pickle tells to save it."""
    save_file({**case.weights, **case.filters}, path, metadata={"precond": case.recipe["precond"]})
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_denoised_picture_is_that_of_the_published_code(name: str, tmp_path: Path) -> None:
    case = recorded(name)
    model = load(saved(case, tmp_path / "net.safetensors"))
    x, sigma = case.tensors["x"], case.tensors["sigma"]
    classes, augment = case.tensors.get("classes"), case.tensors.get("augment")

    def ours(vector: Tensor | None) -> Tensor:
        level = Level(torch.ones(3, 1, 1, 1), sigma.view(-1, 1, 1, 1))
        with torch.no_grad():
            return model.denoiser(x, level, Condition(vector=vector)).x0

    close(ours(classes), case.tensors["x0"])
    if augment is not None:
        vector = augment if classes is None else torch.cat((classes, augment), 1)
        close(ours(vector), case.tensors["x0_augmented"])
        assert not torch.allclose(case.tensors["x0"], case.tensors["x0_augmented"], rtol=0.01)
    if classes is not None:
        torch.testing.assert_close(ours(None), ours(torch.zeros_like(classes)), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(ours(None)[:2], ours(classes)[:2], rtol=0.01)


def test_the_denoiser_walks_another_process_alike(tmp_path: Path) -> None:
    """At x / alpha and sigma / alpha it says what it says at alpha = 1."""
    case = recorded("edm_vp")
    model = load(saved(case, tmp_path / "net.safetensors"))
    x, classes = case.tensors["x"].double()[1:2], case.tensors["classes"][1:2]
    alpha = 2**-0.5
    with torch.no_grad():
        x0 = model.denoiser(x * alpha, Level(alpha, alpha), Condition(vector=classes)).x0
    close(x0, case.tensors["x0"][1:2].double())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_layouts_go_both_ways(name: str) -> None:
    case = recorded(name)
    theirs = {**case.weights, **case.filters}
    found, size = settings(shapes(theirs), "file")
    assert size == 8
    network = NCSNpp(**found) if "taps" in found else ADM(**found)
    ours = weights(theirs, "file")
    expected = {k: tuple(w.shape) for k, w in network.state_dict().items()}
    assert {k: tuple(w.shape) for k, w in ours.items()} == expected
    back = to_theirs(table(network, size), ours)
    assert sorted(back) == sorted(case.weights)
    assert all(torch.equal(back[key], case.weights[key]) for key in back)


@pytest.mark.parametrize("name", sorted(n for n in PUBLISHED if n.startswith("edm")))
def test_settings_of_published_networks_are_told_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        network = NCSNpp.published(name)
        theirs = to_theirs(table(network, 64 if "64" in name else 32), network.state_dict())
    kernel = network.enc["1_down"].resample.kernel.shape  # type: ignore[union-attr]
    row = torch.tensor(network.taps, dtype=torch.float32)
    theirs["model.enc.16x16_down.conv0.resample_filter"] = torch.outer(row, row)[None, None] / row.sum() ** 2
    assert theirs["model.enc.16x16_down.conv0.resample_filter"].shape == kernel
    found, _ = settings(shapes(theirs), "file")
    assert all(getattr(network, key) == value for key, value in found.items())


def test_edms_adm_is_adm_of_three_channels_out() -> None:
    with torch.device("meta"):
        network = ADM(**{**ADMS["imagenet_64"], "out_channels": 3, "new_attention_order": False})
    assert sum(p.numel() for p in network.parameters()) == 295_899_267
    theirs = to_theirs(table(network, 64), network.state_dict())
    found, size = settings(shapes(theirs), "file")
    assert size == 64
    assert all(getattr(network, key) == value for key, value in found.items())
    assert theirs["model.dec.8x8_in0.qkv.weight"].shape == (3 * 768, 768, 1, 1)
    assert "model.dec.8x8_in1.qkv.weight" not in theirs


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    path = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    path.write_bytes(b"\x80\x04\x95\x00}\x94(\x8c\x03ema\x94\x8c\x17torch_utils.persistence\x94")
    with pytest.raises(InvalidInput, match="holds code") as caught:
        load(path)
    assert "save_file" in caught.value.do
    assert "precond" in caught.value.do


def test_what_a_file_does_not_tell_is_warned_of(tmp_path: Path) -> None:
    case = recorded("baseline_vp")
    path = tmp_path / "net.safetensors"
    save_file({**case.weights, **case.filters}, path)
    assert matches(path)
    with pytest.warns(UserWarning, match="metadata precond"):
        model = read(path)
    assert model.describe()["prediction"] == {"name": "edm"}
    assert read(path, precond="VPPrecond").describe()["process"] == {"name": "vp"}
    with pytest.raises(InvalidInput, match="VPPrecond"):
        read(path, precond="VPrecond")


def test_what_a_file_is_found_to_be_is_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = recorded("edm_vp")
    assert main(["inspect", str(saved(case, tmp_path / "net.safetensors"))]) == 0
    shown = capsys.readouterr().out
    fit = f"{len(case.weights)} of {len(case.weights)} tensors fit"
    for word in ("of EDM, preconditioned as EDMPrecond", "ncsnpp", "quarter_log_sigma", "heun", fit):
        assert word in shown
    pickled = tmp_path / "net.pkl"
    pickled.write_bytes(b"\x80\x04\x95\x00}\x94(\x8c\x03ema\x94\x8c\x17torch_utils.persistence\x94")
    assert main(["inspect", str(pickled), "--json"]) == 0
    refused = json.loads(capsys.readouterr().out)
    assert refused["format"] == "edm"
    assert "never run" in refused["missing"]
    assert "save_file" in refused["advice"]


def test_a_published_network_is_named_by_its_shapes(tmp_path: Path) -> None:
    """A file of the sizes of the real one, without its numbers on the disk."""
    with torch.device("meta"):
        network = NCSNpp.published("edm_cifar_ve_classes")
        theirs = to_theirs(table(network, 32), network.state_dict())
    held = {**shapes(theirs), "model.enc.16x16_down.conv0.resample_filter": (1, 1, 4, 4)}
    found = report(hollow(tmp_path / "net.safetensors", held), precond="EDMPrecond")
    assert found.published == "edm_cifar_ve_classes"
    assert found.keys().exact
    assert found.card["size"] == [32, 32]
    assert found.card["steps"] == 18


def test_a_state_dict_of_torch_save_is_read_too_and_generates(tmp_path: Path) -> None:
    case = recorded("edm_vp")
    torch.save({**case.weights, **case.filters}, tmp_path / "net.pt")
    model = load(tmp_path / "net.pt", precond="EDMPrecond")
    twin = load(saved(case, tmp_path / "net.safetensors"))
    drawn = [generate(each, seed=1, steps=3, label="1").tensor for each in (model, twin)]
    assert torch.equal(*drawn)
    assert torch.isfinite(drawn[0]).all()
    assert not torch.equal(drawn[0], generate(model, seed=1, steps=3, label="0").tensor)


def test_what_does_not_fit_is_reported_and_loaded_only_where_asked(tmp_path: Path) -> None:
    case = recorded("edm_vp")
    path = tmp_path / "net.safetensors"
    name = "model.dec.8x8_block0.conv1"
    held = {**case.weights, **case.filters}
    held[f"{name}.wieght"] = held.pop(f"{name}.weight")
    save_file(held, path, metadata={"precond": "EDMPrecond"})
    with pytest.raises(KeyMismatch, match=r"1 missing: .*0_block0\.conv1\.weight.*1 unexpected: .*wieght"):
        load(path)
    with pytest.warns(UserWarning, match="1 missing"):
        model = load(path, strict=False)
    kept = model.denoiser.network.dec["0_block0"].conv1.bias  # type: ignore[index, union-attr]
    assert torch.equal(kept, case.weights[f"{name}.bias"])
    held[f"{name}.weight"] = torch.zeros(3, 3, 3, 3)
    del held[f"{name}.wieght"]
    save_file(held, path, metadata={"precond": "EDMPrecond"})
    with pytest.raises(KeyMismatch, match=r"1 other shapes: .*got \[3, 3, 3, 3\]"):
        load(path)


def test_a_filter_of_the_same_length_but_other_numbers_is_refused(tmp_path: Path) -> None:
    case = recorded("edm_ve")
    filters = {name: torch.full_like(each, 1 / each.numel()) for name, each in case.filters.items()}
    assert next(iter(filters.values())).shape[-1] == 4
    path = tmp_path / "net.safetensors"
    save_file({**case.weights, **filters}, path, metadata={"precond": "EDMPrecond"})
    with pytest.raises(InvalidInput, match="none of the filters of EDM"):
        load(path)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    case = recorded("baseline_vp")
    path = tmp_path / "net.safetensors"
    save_file({"time_embed.0.weight": torch.zeros(2, 2)}, path)
    assert not matches(path)
    with pytest.raises(InvalidInput, match="SongUNet"):
        settings({"model.map_layer0.weight": (2, 2)}, "file")
    more = {**case.weights, **case.filters, "u": torch.zeros(1001)}
    with pytest.raises(KeyMismatch, match="unexpected: u"):
        weights(more, "file")
