"""score_sde_pytorch: settings from shapes, names both ways, and the scores of the published code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from score_recipes import Recorded, close, recorded
from torch import Tensor

import sfumato
from sfumato.checkpoints import score_sde
from sfumato.checkpoints.load import load
from sfumato.checkpoints.score_sde import averaged, read, table, weights
from sfumato.checkpoints.score_shapes import settings
from sfumato.checkpoints.translation import to_ours, to_theirs
from sfumato.core.condition import Condition
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, NotFinite
from sfumato.core.level import Level
from sfumato.interfaces.cli import main
from sfumato.model import Model
from sfumato.networks.ncsnpp import PUBLISHED, NCSNpp

FOLDERS = {
    "vp": "vp/cifar10_ddpmpp_continuous",
    "sub_vp": "subvp/cifar10_ddpmpp_continuous",
    "vp_discrete": "vp/cifar10_ddpmpp",
    "vp_ncsnpp": "vp/cifar10_ncsnpp_continuous",
    "cat": "vp/continuous",
    "convolutions": "vp/continuous",
    "ve": "somewhere",
    "ve_pyramids": "somewhere",
    "ve_discrete": "ve/cifar10_ncsnpp",
}


def checkpoint(case: Recorded) -> dict[str, Any]:
    """As their training saves it: the average in a list, other numbers in the model, and an optimizer."""
    frozen = case.recipe["frozen"]
    model = {k: w if k in frozen else torch.full_like(w, 7.0) for k, w in case.weights.items()}
    return {
        "optimizer": {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4}]},
        "model": {"module.sigmas": case.sigmas, **{f"module.{k}": w for k, w in model.items()}},
        "ema": {
            "decay": 0.999,
            "num_updates": 5,
            "shadow_params": [w for k, w in case.weights.items() if k not in frozen],
        },
        "step": 5,
    }


def saved(case: Recorded, folder: Path, name: str) -> Path:
    path = folder / FOLDERS[name] / "checkpoint_8.pth"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint(case), path)
    return path


def denoised(model: Model, case: Recorded) -> tuple[Tensor, Tensor]:
    """Our denoised pictures, and theirs by Tweedie's formula: (x + sigma² score) / alpha."""
    x, score, time = (case.tensors[name] for name in ("x", "score", "time"))
    ve = case.recipe["process"] == "ve"
    steps = case.recipe["sigmas"][2]
    t = time.double() if case.recipe["continuous"] else (time.double() + 1) / steps
    level = model.process(t)
    ours = 2 * x - 1 if ve else x
    wide = Level(level.alpha.view(-1, 1, 1, 1), level.sigma.view(-1, 1, 1, 1))
    with torch.no_grad():
        batch = model.denoiser(ours, wide, Condition()).x0
        rows = [
            model.denoiser(ours[i : i + 1], model.process(float(t[i])), Condition()).x0 for i in range(len(t))
        ]
    close(torch.cat(rows), batch)
    alpha, sigma = wide.alpha, wide.sigma / (2 if ve else 1)
    theirs = (x.double() + sigma**2 * score.double()) / alpha
    return batch.double(), 2 * theirs - 1 if ve else theirs


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_the_denoised_picture_is_that_of_the_published_code(name: str, tmp_path: Path) -> None:
    case = recorded(name)
    model = load(saved(case, tmp_path, name))
    close(*denoised(model, case))
    assert model.card["trained_steps"] == 5
    levels = len(model.denoiser.network.multipliers)  # type: ignore[arg-type]
    assert model.space.shape(2**levels, 2**levels) == (3, 2**levels, 2**levels)


@pytest.mark.parametrize("name", ["ve", "ve_discrete", "vp"])
def test_the_score_of_the_network_is_finite_down_to_the_least_noise(name: str, tmp_path: Path) -> None:
    """1 / sigma is 50 at the cleanest level of their pictures; asked just there, in half precision too."""
    case = recorded(name)
    model = load(saved(case, tmp_path, name))
    network, process = model.denoiser.network.bfloat16(), model.process
    sigma = process(process.t_min).sigma
    assert sigma < 0.03
    with torch.no_grad():
        x0 = model.denoiser(torch.zeros(1, 3, 8, 8), Level(1.0, sigma), Condition()).x0
    assert torch.isfinite(x0).all()
    assert network.state_dict()["map_layer0.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted({*FOLDERS, "one_level"}))
def test_names_and_layouts_go_both_ways(name: str) -> None:
    case = recorded(name)
    if name == "one_level":
        network = NCSNpp(channels=32, multipliers=(2,), blocks=1, attention=(), taps=(1, 1), input="none")
        ours = to_ours(table(network), case.weights, "file")
    else:
        ours = weights(case.weights, "file")
        network = NCSNpp(**settings({k: tuple(w.shape) for k, w in case.weights.items()}, "file"))
    expected = {k: tuple(w.shape) for k, w in network.state_dict().items()}
    assert {k: tuple(w.shape) for k, w in ours.items()} == expected
    back = to_theirs(table(network), ours)
    assert sorted(back) == sorted(case.weights)
    assert all(torch.equal(back[key], case.weights[key]) for key in back)


def test_one_level_says_what_the_published_code_says() -> None:
    """Too few halvings to tell the settings by; told them, the network is theirs."""
    case = recorded("one_level")
    network = NCSNpp(channels=32, multipliers=(2,), blocks=1, attention=(), taps=(1, 1), input="none").eval()
    network.load_state_dict(to_ours(table(network), case.weights, "file"))
    t = case.tensors["time"]
    with torch.no_grad():
        out = network(case.tensors["x"], 999 * t, Condition())
    # In float32, as theirs is: at t = .001 it is off by 1e-4.
    std = (1 - (-0.5 * t**2 * 19.9 - t * 0.1).exp()).sqrt().view(-1, 1, 1, 1)
    close(-out / std, case.tensors["score"])
    with pytest.raises(InvalidInput, match="two levels or more"):
        weights(case.weights, "file")


@pytest.mark.parametrize("name", sorted(n for n in PUBLISHED if not n.startswith("edm")))
def test_settings_of_published_networks_are_told_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        network = NCSNpp.published(name)
        theirs = to_theirs(table(network), network.state_dict())
    numbers = {int(key.split(".")[1]) for key in theirs}
    assert numbers == set(range(len(numbers)))
    found = settings({k: tuple(w.shape) for k, w in theirs.items()}, "file")
    untold = ("dropout", "scale_by_sigma", "classes", "augment")
    for key, value in found.items():
        assert getattr(network, key) == value, key
    assert set(found) | set(untold) == set(network.__dataclass_fields__)


def test_the_average_is_used_and_the_fourier_features_are_kept() -> None:
    case = recorded("ve")
    assert case.recipe["frozen"] == ["all_modules.0.W"]
    held, sigmas = averaged(checkpoint(case), "file")
    assert sigmas == pytest.approx((0.01, 50.0, 1000))
    assert sorted(held) == sorted(case.weights)
    assert all(torch.equal(held[key], case.weights[key]) for key in held)


def test_noise_is_doubled_for_data_in_minus_one_to_one(tmp_path: Path) -> None:
    model = load(saved(recorded("ve_pyramids"), tmp_path, "ve_pyramids"))
    assert model.process(1.0).sigma == pytest.approx(696, rel=1e-6)
    assert model.process(1e-9).sigma == pytest.approx(0.02, rel=1e-6)
    assert model.card["size"] == [128, 128]
    discrete = load(saved(recorded("ve_discrete"), tmp_path, "ve_discrete"))
    assert discrete.process(1e-3).sigma == pytest.approx(0.02, rel=1e-6)
    assert discrete.process.steps == 1000


def test_what_weights_do_not_tell_is_said_or_warned_of(tmp_path: Path) -> None:
    case = recorded("vp")
    path = tmp_path / "mine.pth"
    torch.save(checkpoint(case), path)
    with pytest.warns(UserWarning, match="taken for a continuous VP"):
        assert load(path).describe()["process"] == {"name": "vp"}
    assert read(path, sde="sub_vp").describe()["process"] == {"name": "sub_vp"}
    with pytest.raises(InvalidInput, match="ve goes with fourier"):
        read(path, sde="ve")
    with pytest.raises(InvalidInput, match="did you mean"):
        read(path, sde="subvp")  # type: ignore[arg-type]


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_inspected_and_generate_through_every_entrance(
    zipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of PyTorch before 1.6."""
    case = recorded("ve")
    path = tmp_path / "ve" / "checkpoint_12.pth"
    path.parent.mkdir()
    torch.save(checkpoint(case), path, _use_new_zipfile_serialization=zipped)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in ("score_sde", "trained on ve", "yes (EMA)", "tensors fit", "log_half_sigma", "ncsnpp"):
        assert word in shown
    found = score_sde.report(path)
    assert found.keys().exact
    assert found.notes == ()
    drawn = sfumato.generate(sfumato.load(path), seed=1, steps=3, size=(8, 8), times="karras").tensor
    assert torch.isfinite(drawn).all()
    assert drawn.std() > 0


def test_a_published_network_is_named_by_its_shapes(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = NCSNpp.published("cifar_ddpmpp_deep")
        theirs = to_theirs(table(network), network.state_dict())
    found = settings({k: tuple(w.shape) for k, w in theirs.items()}, "file")
    assert NCSNpp.shaped(found) == "cifar_ddpmpp_deep"


def test_what_does_not_fit_is_reported_and_loaded_only_where_asked(tmp_path: Path) -> None:
    case = recorded("vp")
    path = tmp_path / "checkpoint.pth"
    name = next(k for k in case.weights if k.endswith("NIN_3.b"))
    case.weights[name.replace("NIN_3.b", "NIN_3.c")] = case.weights.pop(name)
    torch.save(checkpoint(case), path)
    with pytest.raises(KeyMismatch, match=r"1 missing: .*proj_out\.bias.*1 unexpected: .*NIN_3\.c"):
        read(path, sde="vp")
    with pytest.warns(UserWarning, match="1 missing"):
        model = read(path, sde="vp", strict=False)
    first = next(w for k, w in case.weights.items() if k.endswith("bias"))
    assert torch.equal(model.denoiser.network.state_dict()["map_layer0.bias"], first)


def test_damaged_and_other_checkpoints_are_refused(tmp_path: Path) -> None:
    case = recorded("vp")
    whole = checkpoint(case)
    path = tmp_path / "vp" / "checkpoint.pth"
    path.parent.mkdir()

    def refused(change: dict[str, Any], error: type[Exception], match: str) -> None:
        torch.save({**whole, **change}, path)
        with pytest.raises(error, match=match):
            read(path)

    refused({"ema": {"shadow_params": whole["ema"]["shadow_params"][:-1]}}, CheckpointCorrupt, "average of")
    refused({"ema": {}}, CheckpointCorrupt, "no model and ema")
    flat = {**whole["model"], "module.sigmas": torch.ones(1000)}
    refused({"model": flat}, CheckpointCorrupt, "no ladder")
    spoiled = [w.clone() for w in whole["ema"]["shadow_params"]]
    spoiled[3].flatten()[0] = math.nan
    refused({"ema": {"shadow_params": spoiled}}, NotFinite, "NaN")
    other = {"all_modules.0.weight": torch.zeros(4, 4), "all_modules.1.weight": torch.zeros(4, 4, 3, 3)}
    with pytest.raises(InvalidInput, match="NCSN"):
        weights(other, "file")
    missing = {k: w for k, w in case.weights.items() if not k.endswith("GroupNorm_1.bias")}
    with pytest.raises(KeyMismatch, match="missing"):
        weights(missing, "file")
    torch.save({"state": torch.zeros(3)}, path)
    assert not score_sde.matches(path)
    assert not score_sde.matches(tmp_path)
