"""Processes: published anchors, and the laws all of them obey."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.processes.betas import Betas
from sfumato.processes.cosine import Cosine
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.sub_vp import SubVP
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, find, names

EVERY: list[Process] = [
    *(build("process", name) for name in names("process")),
    Betas("scaled_linear"),
    Betas("cosine"),
    Betas("scaled_linear", zero_terminal_snr=True),
    Betas("linear", steps=50),
    Betas(values=(0.1, 0.2, 0.05, 0.5)),
    VE(0.02, 100.0),
    EDM(0.02, 20.0),
]
each = pytest.mark.parametrize("process", EVERY, ids=repr)


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def printed(value: float, digits: int = 8) -> object:
    """The sheet prints eight digits (six or seven for some)."""
    return pytest.approx(value, rel=0.6 * 10 ** (1 - digits))


# Indices 0, 249, 499, 749, 999 and sigma/alpha at both ends.
@pytest.mark.parametrize(
    "betas, powers, low, high",
    [
        (Betas(), (0.9999, 0.52408537, 0.078587243, 0.0033505504, 4.0358298e-5), 0.0100005, 157.407),
        (
            Betas("scaled_linear"),
            (0.99915, 0.67543241, 0.27766965, 0.056623492, 0.0046600985),
            0.0291672,
            14.6146,
        ),
        (
            Betas("scaled_linear", start=0.0015, end=0.0195),
            (0.9985, 0.5105143, 0.11584449, 0.0084448305, 1.4230398e-4),
            0.0387589,
            83.8225,
        ),
        (
            Betas("cosine"),
            (0.99995872, 0.84701216, 0.49384359, 0.1442721, 2.4287669e-9),
            0.00642541,
            20291.2,
        ),
    ],
    ids=["linear", "scaled_linear", "latent diffusion", "cosine"],
)
def test_anchors_of_the_betas(betas: Betas, powers: tuple[float, ...], low: float, high: float) -> None:
    assert betas.alphas_cumprod[[0, 249, 499, 749, 999]].tolist() == pytest.approx(powers, rel=1e-6)
    for index, power in zip((0, 249, 499, 749, 999), powers, strict=True):
        level = betas((index + 1) / 1000)
        assert level.alpha**2 == near(power)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-14)
    assert betas(0.001).ratio == printed(low, 6)
    assert betas(1.0).ratio == printed(high, 6)


@pytest.mark.parametrize(
    "betas, low, high", [(Betas(), 9.2102, -10.1177), (Betas("scaled_linear"), 7.0694, -5.3640)]
)
def test_log_snr_of_the_betas(betas: Betas, low: float, high: float) -> None:
    """The sheet counts log(alpha²/sigma²), twice ours."""
    assert 2 * betas(0.001).log_snr == pytest.approx(low, abs=6e-5)
    assert 2 * betas(1.0).log_snr == pytest.approx(high, abs=6e-5)


def test_more_betas() -> None:
    assert Betas("scaled_linear", start=0.0015, end=0.0205)(1.0).ratio == printed(101.576, 6)
    assert Betas("scaled_linear", start=0.0015, end=0.0155)(1.0).ratio == printed(38.659, 5)
    cosine = Betas("cosine")
    assert int((cosine.betas == 0.999).sum()) == 1
    assert cosine.betas[-1].item() == 0.999
    assert cosine.betas[0].item() == near(4.1284225e-5)
    assert math.sqrt(1 - Betas("scaled_linear").alphas_cumprod[-1].item()) == near(0.997667)
    long = Betas("cosine", steps=4000)
    assert long.alphas_cumprod[0].item() == near(0.99999013)
    assert long.alphas_cumprod[-1].item() == printed(1.518e-10, 4)
    linear = Betas(steps=4000)
    assert (linear.betas[0].item(), linear.betas[-1].item()) == (near(2.5e-5), near(0.005))
    assert linear.alphas_cumprod[-1].item() == pytest.approx(4.3e-5, rel=0.05)
    assert Betas(values=(0.1, 0.5)).alphas_cumprod.tolist() == pytest.approx([0.9, 0.45])


def test_zero_terminal_snr() -> None:
    """Sheet 01 §2; diffusers' own function as reference in tests/parity."""
    plain, zero = Betas("scaled_linear"), Betas("scaled_linear", zero_terminal_snr=True)
    powers = (0.99915, 0.65418901, 0.24235917, 0.033171483, 1.9678881e-7, 0.0)
    assert zero.alphas_cumprod[[0, 249, 499, 749, 998, 999]].tolist() == pytest.approx(powers, rel=1e-6)
    assert zero.betas[-1].item() == 1
    assert zero(1.0) == (0.0, 1.0)
    assert zero(0.001).alpha == pytest.approx(plain(0.001).alpha, rel=1e-12)
    assert math.isfinite(zero.log_snr_range()[0])


@pytest.mark.parametrize(
    "t, alpha, vp, sub_vp, ratio",
    [
        (1e-5, 0.9999995, 0.0010004971, 1.0009945e-6, 0.0010004976),
        (1e-3, 0.99994503, 0.010485416, 1.0994396e-4, 0.010485993),
        (0.5, 0.28118288, 0.9596542, 0.92093619, 3.4129183),
        (1.0, 0.0065715865, 0.99997841, 0.99995681, 152.16697),
    ],
)
def test_anchors_of_vp_and_sub_vp(t: float, alpha: float, vp: float, sub_vp: float, ratio: float) -> None:
    assert VP()(t).alpha == near(alpha)
    assert SubVP()(t).alpha == near(alpha)
    assert VP()(t).sigma == near(vp)
    assert SubVP()(t).sigma == near(sub_vp)
    assert VP()(t).ratio == near(ratio)
    # The same in EDM's form.
    assert VP()(t).ratio == pytest.approx(math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t)), rel=1e-9)


def test_vp_is_the_limit_of_the_linear_betas() -> None:
    fine = Betas("linear", steps=100_000)
    for t in (0.01, 0.3, 0.7, 1.0):
        assert VP()(t).alpha == pytest.approx(fine(t).alpha, rel=1e-3)


def test_the_other_formulas() -> None:
    assert Cosine()(0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))
    assert Cosine()(0.2).ratio == pytest.approx(math.tan(0.1 * math.pi))
    assert Cosine()(1.0).alpha == 0
    assert Flow()(0.3) == pytest.approx((0.7, 0.3))
    assert EDM()(1.0) == (1.0, 80.0)
    assert EDM()(EDM().t_min).sigma == pytest.approx(0.002)
    assert VE()(1.0).sigma == pytest.approx(50)
    assert VE()(0.5).sigma == pytest.approx(math.sqrt(0.5))
    steps = [VE(0.01, 1.0)(i / 9).sigma for i in range(9, 0, -1)]
    ladder = (1, 0.599484, 0.359381, 0.215443, 0.129155, 0.077426, 0.046416, 0.027826, 0.016681)
    assert steps == pytest.approx(ladder, abs=6e-7)


@given(t=st.floats(0, 1))
def test_sub_vp_lies_below_vp(t: float) -> None:
    assert SubVP()(t).sigma <= VP()(t).sigma


@each
def test_clean_data_are_exactly_clean(process: Process) -> None:
    assert process(0.0) == (1.0, 0.0)
    assert process(torch.zeros(2)).sigma.tolist() == [0.0, 0.0]
    assert process(torch.zeros(2)).alpha.tolist() == [1.0, 1.0]


@each
def test_noise_only_grows(process: Process) -> None:
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:]
    t = t[t >= process.t_min]
    log_snr = process(t).log_snr
    assert (log_snr[1:] < log_snr[:-1]).all()
    assert process(t).alpha.min() >= 0


@each
@given(part=st.floats(0, 1))
def test_times_come_back_from_log_snr(process: Process, part: float) -> None:
    low, high = process.log_snr_range()
    log_snr = low + part * (high - low)
    t = process.time(log_snr)
    assert process.t_min * (1 - 1e-9) <= t <= 1
    assert process(t).log_snr == pytest.approx(log_snr, abs=1e-8)
    assert process.time(torch.tensor(log_snr, dtype=torch.float64)).item() == pytest.approx(t, rel=1e-12)


@each
def test_the_ends_of_log_snr(process: Process) -> None:
    assert process.time(math.inf) == 0
    assert process.time(process(1.0).log_snr) == pytest.approx(1.0, abs=1e-9)
    assert 0 <= process.time(1e3) <= process.t_min
    assert process.time(-1e3) == pytest.approx(1.0, abs=1e-9)


def test_closed_inverses_agree_with_bisection() -> None:
    for process in EVERY:
        if type(process).invert is Process.invert:
            continue
        low, high = process.log_snr_range()
        values = torch.linspace(low, high, 50, dtype=torch.float64)
        torch.testing.assert_close(
            process.time(values), Process.invert(process, values), rtol=1e-7, atol=1e-12
        )


@each
def test_rates_are_derivatives(process: Process) -> None:
    # Between the kinks of a discrete process, and away from the ends.
    t = (torch.arange(1, 40, dtype=torch.float64) / 41).mul(process.steps).floor().add(0.5) / process.steps
    t = t[(t > 2 / process.steps) & (t < 1 - 1 / process.steps)]
    h = 1e-6 / process.steps * 100
    rates = process.rates(t)
    for ours, above, below in zip(rates, process(t + h), process(t - h), strict=True):
        torch.testing.assert_close(ours, (above - below) / (2 * h), rtol=2e-6, atol=1e-7)


@each
def test_rates_are_the_same_while_nothing_is_learnt(process: Process) -> None:
    """Walks run in inference mode, and a fresh process makes its tables there."""
    times = torch.tensor([0.3, 0.7], dtype=torch.float64)
    fresh, expected = copy.deepcopy(process), process.rates(times)
    for table in ("betas", "alphas_cumprod", "table"):
        fresh.__dict__.pop(table, None)
    with torch.inference_mode():
        ours = fresh.rates(times.clone())
        assert fresh.rates(0.3) == tuple(each[0].item() for each in expected)
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
    assert not any(each.requires_grad for each in ours)


T = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)


def test_drift_and_diffusion_of_vp() -> None:
    beta = 0.1 + 19.9 * T
    torch.testing.assert_close(VP().drift(T), -beta / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(VP().diffusion(T), beta.sqrt(), rtol=1e-10, atol=0)


def test_drift_and_diffusion_of_sub_vp() -> None:
    beta = 0.1 + 19.9 * T
    torch.testing.assert_close(SubVP().drift(T), -beta / 2, rtol=1e-10, atol=0)
    expected = (beta * -torch.expm1(-2 * 0.1 * T - 19.9 * T**2)).sqrt()
    torch.testing.assert_close(SubVP().diffusion(T), expected, rtol=1e-9, atol=0)


def test_drift_and_diffusion_of_ve_edm_flow_and_cosine() -> None:
    assert VE().drift(T).abs().max() == 0
    expected = VE()(T).sigma * math.sqrt(2 * math.log(5000))
    torch.testing.assert_close(VE().diffusion(T), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(EDM().diffusion(T), 80 * (2 * T).sqrt(), rtol=1e-10, atol=0)
    torch.testing.assert_close(Flow().drift(T), -1 / (1 - T), rtol=1e-10, atol=0)
    torch.testing.assert_close(Flow().diffusion(T), (2 * T / (1 - T)).sqrt(), rtol=1e-10, atol=0)
    tangent = torch.tan(math.pi * T / 2)
    torch.testing.assert_close(Cosine().drift(T), -math.pi / 2 * tangent, rtol=1e-9, atol=0)
    torch.testing.assert_close(Cosine().diffusion(T), (math.pi * tangent).sqrt(), rtol=1e-9, atol=0)


@each
def test_walks_start_from_noise_of_the_right_scale(process: Process) -> None:
    """For data of unit variance at most: prior_std² is sigma² (VE, EDM) or alpha² + sigma² (the others)."""
    noise = Noise([0, 1])
    x = process.prior((2, 3), noise)
    torch.testing.assert_close(x, noise.randn((2, 3), "prior") * process.prior_std)
    level = process(1.0)
    assert level.sigma * (1 - 1e-12) <= process.prior_std <= level.norm * (1 + 1e-4)
    below = process.prior((2, 3), noise, 0.5)
    torch.testing.assert_close(below, x * (process(0.5).norm / level.norm), rtol=1e-6, atol=0)


@each
def test_floats_are_tensors(process: Process) -> None:
    for t in (process.t_min, 0.25, 0.5, 1.0):
        level = process(torch.tensor(t, dtype=torch.float64))
        assert process(t) == pytest.approx((level.alpha.item(), level.sigma.item()), rel=1e-15)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 1}, {"values": (0.5, 1.5)}, {"values": (0.0, 0.5)}, {"values": (float("nan"), 0.5)}],
)
def test_betas_that_are_none(settings: dict) -> None:
    with pytest.raises(InvalidInput, match="betas"):
        find("process", "betas")(**settings)


@pytest.mark.parametrize("name", names("process"))
def test_paths_and_grids_stay_on_the_cpu_whatever_the_default_device(name: str) -> None:
    """A model is built on the meta device when it is loaded, and people set the default device to a GPU."""
    plain = build("process", name)
    with torch.device("meta"):
        path = build("process", name)
        assert path(0.37) == plain(0.37)
        assert path.sde(0.37) == plain.sde(0.37)
        assert path.time(0.2) == plain.time(0.2)
        grids = [build("times", grid)(path, 7) for grid in names("times")]
    for grid, times in zip(names("times"), grids, strict=True):
        assert torch.equal(times, build("times", grid)(plain, 7)), grid
