"""EDM: names both ways, settings from shapes, and the preconditioned outputs of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from score_recipes import Recorded, close, recorded
from torch import Tensor

from sfumato.checkpoints.edm import matches, read, settings, table, weights
from sfumato.checkpoints.load import load
from sfumato.checkpoints.translation import to_theirs
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.level import Level
from sfumato.networks.adm import ADM
from sfumato.networks.adm import PUBLISHED as ADMS
from sfumato.networks.ncsnpp import PUBLISHED, NCSNpp

NAMES = ["baseline_ve", "baseline_vp", "edm_adm", "edm_pyramids", "edm_ve", "edm_vp"]


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
    found, size = settings(theirs, "file")
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
    found, _ = settings(theirs, "file")
    assert all(getattr(network, key) == value for key, value in found.items())


def test_edms_adm_is_adm_of_three_channels_out() -> None:
    with torch.device("meta"):
        network = ADM(**{**ADMS["imagenet_64"], "out_channels": 3, "new_attention_order": False})
    assert sum(p.numel() for p in network.parameters()) == 295_899_267
    theirs = to_theirs(table(network, 64), network.state_dict())
    found, size = settings(theirs, "file")
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


def test_other_weights_are_refused(tmp_path: Path) -> None:
    case = recorded("baseline_vp")
    path = tmp_path / "net.safetensors"
    save_file({"time_embed.0.weight": torch.zeros(2, 2)}, path)
    assert not matches(path)
    with pytest.raises(InvalidInput, match="SongUNet"):
        settings({"model.map_layer0.weight": torch.zeros(2, 2)}, "file")
    more = {**case.weights, **case.filters, "u": torch.zeros(1001)}
    with pytest.raises(KeyMismatch, match="unexpected: u"):
        weights(more, "file")
