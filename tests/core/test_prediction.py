"""Predictions: every target is a linear map to the same data, at any level of any process."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import EDM, PREDICTIONS, Velocity

NAMES = sorted(PREDICTIONS)
X0 = Noise(range(4)).randn((4, 6), "x0").double()
EPS = Noise(range(4)).randn((4, 6), "eps").double()


def column(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@given(alpha=st.floats(0.01, 3), sigma=st.floats(0.01, 3))
def test_the_target_gives_the_data_back(name: str, alpha: float, sigma: float) -> None:
    prediction, level = PREDICTIONS[name](), Level(alpha, sigma)
    skip, out = prediction.coefficients(level)
    x = alpha * X0 + sigma * EPS
    target = prediction.target(X0, EPS, Level(column(alpha), column(sigma)))
    torch.testing.assert_close(skip * x + out * target, X0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_tensor_levels_are_float_levels(name: str) -> None:
    prediction = PREDICTIONS[name]()
    for alpha, sigma in ((0.3, 0.9), (1.0, 50.0), (0.999, 0.01)):
        ours = torch.stack(list(prediction.coefficients(Level(column(alpha), column(sigma)))))
        assert ours.tolist() == pytest.approx(prediction.coefficients(Level(alpha, sigma)), rel=1e-14)
        scale = prediction.scale(Level(column(alpha), column(sigma)))
        assert float(scale) == pytest.approx(prediction.scale(Level(alpha, sigma)), rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_vanished_signal(name: str) -> None:
    """At alpha = 0 either the map stays finite, or the prediction says that it needs signal."""
    prediction = PREDICTIONS[name]()
    skip, out = prediction.coefficients(Level(column(0.0), column(1.0)))
    assert prediction.needs_signal != bool(torch.isfinite(skip) & torch.isfinite(out))


def test_the_rows_of_the_conversion_table() -> None:
    """Sheet 02 §1: what each network would say, from one x and one x0, written as the papers write it."""
    alpha, sigma = 0.6, 0.8
    x, level = alpha * X0 + sigma * EPS, Level(alpha, sigma)
    said = {
        "noise": (x - alpha * X0) / sigma,
        "data": X0,
        "velocity": alpha * EPS - sigma * X0,
        "score": (alpha * X0 - x) / sigma**2,
        "flow": EPS - X0,
    }
    for name, output in said.items():
        skip, out = PREDICTIONS[name]().coefficients(level)
        torch.testing.assert_close(skip * x + out * output, X0, rtol=0, atol=1e-12)
    s = 0.3
    x_flow = (1 - s) * X0 + s * EPS
    skip, out = PREDICTIONS["flow"]().coefficients(Level(1 - s, s))
    assert (skip, out) == pytest.approx((1, -s))
    torch.testing.assert_close(x_flow - s * said["flow"], X0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 1.0, 80.0])
@pytest.mark.parametrize("data", [0.5, 1.0, 0.1])
def test_the_preconditioning_of_edm(sigma: float, data: float) -> None:
    """Karras et al. 2022, table 1, where alpha = 1."""
    skip, out = EDM(data).coefficients(Level(1.0, sigma))
    total = sigma**2 + data**2
    assert skip == pytest.approx(data**2 / total, rel=1e-14)
    assert out == pytest.approx(sigma * data / math.sqrt(total), rel=1e-14)
    assert EDM(data).scale(Level(1.0, sigma)) == pytest.approx(1 / math.sqrt(total), rel=1e-14)


@pytest.mark.parametrize("name, skip, out", [("velocity", 1.0, -1.0), ("noise", None, None)])
def test_k_diffusion_rows(name: str, skip: float | None, out: float | None) -> None:
    """Sheet 02 §2: v has c_skip 1/(σ²+1), c_out -σ/sqrt(σ²+1) and c_in 1/sqrt(σ²+1); noise 1 and -σ."""
    ratio = 3.0
    norm = math.hypot(1, ratio)
    level = Level(1 / norm, ratio / norm)
    mine = PREDICTIONS[name]().coefficients(level)
    if name == "velocity":
        # x̂ = x · norm, so that D = skip · x + out · F reads (skip / norm) · x̂ + out · F.
        assert (mine[0] / norm, mine[1]) == pytest.approx((1 / (ratio**2 + 1), -ratio / norm))
    else:
        assert (mine[0] / norm, mine[1]) == pytest.approx((1.0, -ratio))


@given(sigma=st.floats(0.002, 80), data=st.floats(0.05, 5))
def test_the_target_of_edm_has_unit_variance(sigma: float, data: float) -> None:
    """Exactly: the target is a x0 + b eps with x0 of std sigma_data, so a² sigma_data² + b² = 1."""
    one, zero, level = column(1.0), column(0.0), Level(column(1.0), column(sigma))
    a = EDM(data).target(one, zero, level)
    b = EDM(data).target(zero, one, level)
    assert float(a**2 * data**2 + b**2) == pytest.approx(1, rel=1e-12)


def test_edm_with_unit_data_is_minus_velocity() -> None:
    level = Level(column(0.6), column(0.8))
    torch.testing.assert_close(
        EDM(1.0).target(X0, EPS, level), -Velocity().target(X0, EPS, level), rtol=0, atol=1e-14
    )
