"""Autoguidance: closed forms, what the weaker model is told, and what may stand in its place."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.auto import Auto
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.processes.edm import EDM
from sfumato.registry import build, describe
from sfumato.samplers.heun import Heun
from sfumato.times.karras import Karras

X = 2 * Noise(range(3)).randn((3, 2), "x").double()
LEVEL = Level(0.8, 0.6)
STRONG, WEAK = GaussianMixture.gaussian(2.0, 0.5, 2), GaussianMixture.gaussian(1.5, 0.5, 2)
NOTHING = Condition()


class Told:
    """The condition's vector plus a wave of x; remembers what it was told."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.calls: list[Condition] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.calls.append(condition)
        assert condition.vector is not None
        return Denoised(self.height * torch.sin(x) + condition.vector, x + self.height)


GIVEN = Condition(vector=torch.tensor([[1.0], [2.0], [3.0]]).double())
NULL = Condition(vector=torch.zeros(3, 1).double())


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_guided_gaussians(scale: float) -> None:
    """Of equal variance: guidance samples exactly the Gaussian at weak + scale (strong - weak)."""
    process, z = EDM(), torch.tensor([[-1.0], [0.0], [1.0]]).double().expand(-1, 2)
    reverse = ReverseProcess(Auto(scale, WEAK)(STRONG, NOTHING), process)
    ours = sample(Heun(), reverse, 80 * z, Karras()(process, 200))
    mean = 1.5 + scale * 0.5
    exact = mean + (80 * z - mean) * 0.5 / math.sqrt(0.25 + 6400)
    torch.testing.assert_close(ours, exact, rtol=0, atol=3e-4)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.5])
def test_the_formula(scale: float) -> None:
    strong, weak = Told(1.0), Told(0.3)
    ours, variance = Auto(scale, weak)(strong, NULL)(X, LEVEL, GIVEN)
    better, worse = (m(X, LEVEL, GIVEN).x0 for m in (strong, weak))
    torch.testing.assert_close(ours, worse + scale * (better - worse), rtol=1e-12, atol=1e-12)
    assert variance is not None
    assert torch.equal(variance, X + 1.0)


def test_both_are_told_the_same() -> None:
    strong, weak = Told(1.0), Told(0.3)
    Auto(2.0, weak)(strong, NULL)(X, LEVEL, GIVEN)
    assert strong.calls == weak.calls == [GIVEN]


def test_scale_one_is_the_model_itself() -> None:
    assert Auto(1.0, WEAK)(STRONG, NOTHING) is STRONG


def test_a_model_stands_for_its_denoiser() -> None:
    weak = Told(0.3)
    loaded = Auto(2.0, SimpleNamespace(denoiser=weak))(Told(1.0), NULL)(X, LEVEL, GIVEN).x0
    assert torch.equal(loaded, Auto(2.0, Told(0.3))(Told(1.0), NULL)(X, LEVEL, GIVEN).x0)
    assert weak.calls == [GIVEN]


def test_with_classifier_free_guidance() -> None:
    """Linear, so inside and around differ only in what the weaker model is guided by."""
    strong, weak = Told(1.0), Told(0.3)
    around = Auto(2.0, weak)(ClassifierFree(3.0)(strong, NULL), NULL)(X, LEVEL, GIVEN).x0
    better = torch.sin(X) + 3 * GIVEN.vector  # type: ignore[operator]
    torch.testing.assert_close(around, 2 * better - weak(X, LEVEL, GIVEN).x0)
    inside = ClassifierFree(3.0)(Auto(2.0, weak)(strong, NULL), NULL)(X, LEVEL, GIVEN).x0
    both = torch.sin(X) * (2 * 1.0 - 0.3) + 3 * GIVEN.vector  # type: ignore[operator]
    torch.testing.assert_close(inside, both)


def test_a_path_is_plain_data() -> None:
    guidance = Auto(1.7, "runs/small")
    assert describe(guidance) == {"name": "auto", "scale": 1.7, "model": "runs/small"}
    assert build("guidance", describe(guidance)) == guidance


@pytest.mark.parametrize("model, match", [(None, "no weaker model"), ("runs/small", "is not loaded")])
def test_a_weaker_model_is_needed(model: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=f"auto.model: .*{match}"):
        Auto(2.0, model)(STRONG, NOTHING)


@pytest.mark.parametrize("model", [3, SimpleNamespace(denoiser=None)])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(InvalidInput, match="is no path, model or denoiser"):
        Auto(2.0, model)
