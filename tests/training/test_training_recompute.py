"""Blocks computed twice in training: the same numbers to rounding, much less kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_toys import Blobs, toy_model

from sfumato.acceleration.winograd import able
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import PREDICTIONS
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.dit import DiT
from sfumato.processes.vp import VP
from sfumato.training.ema import Average
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.parts import LossModule
from sfumato.training.plan import plan
from sfumato.training.run_file import Run
from sfumato.training.settings import Settings, Validating
from sfumato.training.trainer import Trainer

UNET: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "channels": 64, "multipliers": (1, 2),
                        "blocks": 2, "attention": (2,), "classes": 2, "dropout": 0.1}  # fmt: skip
DIT: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "patch": 2, "width": 48, "depth": 3, "heads": 4,
                       "classes": 2}  # fmt: skip


def run(directory: Path, network: Any, **settings: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """Losses, and the weights at the end."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape))
    own = Settings(
        batch=4,
        steps=3,
        optimizer=AdamW(rate=1e-3),
        ema=(Average(0.9),),
        validation=Validating(every=3, items=4, bands=2),
        **settings,
    )
    toy = toy_model()
    model = Model(NetworkDenoiser(network, VP(), PREDICTIONS["noise"]()), toy.conditioner, toy.space)
    model = Trainer(model, Blobs(shape=(3, 8, 8)), Denoising(), own, directory).train()
    lines = map(json.loads, (directory / "losses.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("bands")) for line in lines], network.state_dict()


@pytest.mark.parametrize("make", [lambda: ADM(**UNET), lambda: DiT(**DIT)], ids=["unet", "dit"])
def test_numbers_are_the_same(tmp_path: Path, make: Any) -> None:
    """With dropout, which is the same the second time; gradients are summed in another order."""
    plain, weights = run(tmp_path / "plain", make())
    made, found = run(tmp_path / "again", make(), recompute=True)
    assert made[0] == plain[0]
    torch.testing.assert_close(made, plain, rtol=1e-6, atol=0)
    for name, tensor in weights.items():
        assert float((found[name] - tensor).norm()) < 1e-4 * float(tensor.norm())


@pytest.mark.skipif(not able(), reason="no compiler")
def test_it_goes_with_winograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.acceleration.quick_convolutions._TILES", 1)
    monkeypatch.setattr("sfumato.acceleration.quick_convolutions._WORK", 1)
    quick, _ = run(tmp_path / "plain", ADM(**UNET), winograd=True)
    both, _ = run(tmp_path / "again", ADM(**UNET), winograd=True, recompute=True)
    assert both[0] == quick[0]
    torch.testing.assert_close(both, quick, rtol=1e-6, atol=0)


def test_much_less_is_kept() -> None:
    """By the plan's count; the floor is what stands between the blocks, and a block on its way back."""
    model = {"network": {"name": "adm", **UNET, "classes": 0}, "process": "vp", "prediction": "noise"}
    asked: dict[str, Any] = {"model": model, "data": {"name": "emoji", "size": 32}, "batch": 8, "steps": 1}
    whole, less = (plan(Run(**asked, recompute=again)).step for again in (False, True))
    assert 0.1 * whole < less < 0.6 * whole


def test_what_cannot_be_is_refused_before_the_run() -> None:
    with pytest.raises(InvalidInput, match="has no blocks"):
        LossModule(toy_model(), Denoising(), Settings(recompute=True))
    with pytest.raises(InvalidInput, match="recompute: does not go with compile"):
        LossModule(toy_model(), Denoising(), Settings(recompute=True, compile=True))
