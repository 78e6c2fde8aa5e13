"""A score network learns the weights of two modes, and annealing finds them: examples/langevin_modes.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sfumato.core.level import Level

PATH = Path(__file__).parents[2] / "examples" / "langevin_modes.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("langevin_modes", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modes_are_found_by_annealing_alone(example: ModuleType) -> None:
    """Modes of 4:1: at the least noise a uniform start is shared about evenly, annealed the weights are right
    (three standard errors of 2000 samples are .027, the rest is for a network of few steps).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = example.train(600, levels=20, batch=256)
    # What was learnt is the score: the exact denoiser's estimate where data and noise are of one size.
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.1, 0.0], [2.0, 0.5]])
    for sigma in (0.5, 1.0, 4.0):
        level = Level(1.0, sigma)
        torch.testing.assert_close(
            model(x, level, example.Condition()).x0.detach(), example.DATA(x, level).x0, rtol=0, atol=0.25
        )
    shares = example.weights(model, 2000, steps=10)
    assert abs(shares["at the least noise"] - 0.5) < 0.15
    assert shares["annealed"] == pytest.approx(0.8, abs=0.06)
    assert shares["predictor-corrector"] == pytest.approx(0.8, abs=0.06)
