"""A network as a denoiser: own path, other paths, one level a row, learned range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import TIME_INPUTS, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS
from sfumato.core.process import Process
from sfumato.registry import build, names

X = Noise(range(3)).randn((3, 2, 4, 4), "x").double()


class Wave(nn.Module):
    """A network that is as nonlinear in x and time as one likes, and remembers the time it was told."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        self.time = time
        return torch.sin(x) + torch.cos(time.double() / 300).view(-1, 1, 1, 1) * x


def denoiser(process: Process, prediction: str, time_input: str = "index", **more: Any) -> NetworkDenoiser:
    return NetworkDenoiser(Wave(), process, PREDICTIONS[prediction](), time_input, **more)


PROCESSES = names("process")


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
@pytest.mark.parametrize("name", PROCESSES)
def test_tensor_levels_are_float_levels(name: str, prediction: str) -> None:
    process = build("process", name)
    model, t = denoiser(process, prediction, "time"), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    together = model(X, process(t).like(X), Condition()).x0
    for row, time in enumerate(t.tolist()):
        alone = model(X[row : row + 1], process(time), Condition()).x0
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
@pytest.mark.parametrize("name", PROCESSES)
def test_other_paths_ask_the_same_question(name: str, prediction: str) -> None:
    """The same x/alpha and sigma/alpha give the same estimate, whatever the scale of the path."""
    process = build("process", name)
    model = denoiser(process, prediction, "time")
    for t in (0.25, 0.5, 0.75):
        own = process(t)
        expected = model(X, own, Condition()).x0
        for scale in (1 / own.alpha, 1 / own.norm, 1 / (own.alpha + own.sigma)):
            level = Level(own.alpha * scale, own.sigma * scale)
            there = model(X * scale, level, Condition()).x0
            torch.testing.assert_close(there, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_the_estimate_is_what_the_prediction_says(prediction: str) -> None:
    process = build("process", "vp")
    model, level = denoiser(process, prediction, "time"), process(0.5)
    skip, out = PREDICTIONS[prediction]().coefficients(level)
    scale = PREDICTIONS[prediction]().scale(level)
    said = Wave()(X * scale, torch.full((3,), 0.5), Condition())
    torch.testing.assert_close(model(X, level, Condition()).x0, skip * X + out * said, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "process, t, told",
    [
        ({"name": "betas"}, 0.5, {"index": 499, "thousand": 500, "time": 0.5}),
        ({"name": "betas"}, 1.0, {"index": 999}),
        ({"name": "betas"}, 0.001, {"index": 0}),
        ({"name": "flow"}, 0.25, {"thousand": 250, "time": 0.25}),
        ({"name": "edm"}, 0.5, {"log_sigma": 3.68887945, "quarter_log_sigma": 0.92221986}),
    ],
)
def test_networks_are_told_the_time_they_know(process: dict, t: float, told: dict[str, float]) -> None:
    path = build("process", process)
    for name, value in told.items():
        model = denoiser(path, "data", name)
        model(X, path(t), Condition())
        assert model.network.time.tolist() == pytest.approx([value] * 3, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_pure_noise_gives_a_finite_estimate(name: str, prediction: str) -> None:
    process = build("process", name)
    assert process(1.0).alpha == 0
    assert denoiser(process, prediction)(X, process(1.0), Condition()).x0.isfinite().all()


def test_the_second_half_of_the_channels_is_the_variance() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
            return torch.cat((x, torch.linspace(-1, 1, 3).double().view(3, 1, 1, 1).expand_as(x)), 1)

    process = build("process", "vp")
    model = NetworkDenoiser(Both(), process, PREDICTIONS["data"](), learned_range=True)
    x0, variance = model(X, process(0.5), Condition())
    torch.testing.assert_close(x0, X, rtol=1e-12, atol=1e-12)
    assert variance is not None
    assert variance[:, 0, 0, 0].tolist() == [0, 0.5, 1]


def test_the_dtype_of_x_is_kept() -> None:
    process = build("process", "vp")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = denoiser(process, "noise")
        assert model(X.to(dtype), process(0.5), Condition()).x0.dtype == dtype


def test_an_unknown_time_input() -> None:
    with pytest.raises(InvalidInput, match="did you mean index"):
        denoiser(build("process", "vp"), "noise", "indx")
    assert "index" in TIME_INPUTS
