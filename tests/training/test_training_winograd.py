"""Training with convolutions by Winograd: the same losses to rounding, and the network's own layers after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_toys import Blobs, toy_model

from sfumato.acceleration import quick_convolutions
from sfumato.acceleration.quick_convolutions import QuickConv2d
from sfumato.acceleration.winograd import able, winograd
from sfumato.core.errors import MissingExtra
from sfumato.model import Model
from sfumato.training.ema import Average
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.settings import Settings, Validating
from sfumato.training.trainer import Trainer

needs_compiler = pytest.mark.skipif(not able(), reason="no compiler")


def run(directory: Path, winograd: bool, steps: int = 4, compile: bool = False) -> tuple[list[Any], Model]:
    """Losses and the model of a run on maps of 64 channels and 4 by 4 places."""
    settings = Settings(
        batch=8,
        steps=steps,
        optimizer=AdamW(rate=1e-3),
        ema=(Average(0.9),),
        validation=Validating(every=2, items=6, bands=2),
        winograd=winograd,
        compile=compile,
    )
    model = toy_model(channels=64, size=64 * 16)
    model = Trainer(model, Blobs(shape=(64, 4, 4)), Denoising(), settings, directory).train()
    lines = map(json.loads, (directory / "losses.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("bands")) for line in lines], model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.acceleration.quick_convolutions._TILES", 1)
    monkeypatch.setattr("sfumato.acceleration.quick_convolutions._WORK", 1)


@needs_compiler
@pytest.mark.usefixtures("small")
def test_losses_are_the_same_to_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    own = QuickConv2d.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return own(self, x)

    monkeypatch.setattr(QuickConv2d, "forward", counted)
    plain, _ = run(tmp_path / "plain", False)
    assert not seen
    found, model = run(tmp_path / "quick", True)
    # In training alone, not where it is validated.
    assert set(seen) == {8}
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    assert type(model.denoiser.network.first) is nn.Conv2d  # type: ignore[attr-defined]
    # It may be switched on and off where a run goes on.
    _, longer = run(tmp_path / "plain", True, steps=4)
    assert longer.card == model.card


@needs_compiler
@pytest.mark.usefixtures("small")
def test_it_goes_with_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = run(tmp_path / "plain", False)
    seen = list[int]()
    monkeypatch.setattr(
        quick_convolutions, "winograd", lambda x, *given: (seen.append(len(x)), winograd(x, *given))[1]
    )
    found, _ = run(tmp_path / "both", True, compile=True)
    # One layer, at each of four steps; no gradient is asked of what it is given.
    assert seen == [8] * 4
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


def test_without_a_compiler_it_says_so_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.training.parts.able", lambda: False)
    with pytest.raises(MissingExtra, match=r"compiler of C\+\+"):
        run(tmp_path / "run", True)
