"""The law of the samples, computed and not estimated: with Gaussian data a sampler is a linear map."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.ve import VE
from sfumato.registry import build, names
from sfumato.samplers.ancestral import Ancestral

DATA = GaussianMixture.gaussian(0.7, 0.5)
PROCESSES = names("process")
LAST = 0.25
"""sigma/alpha where laws are compared: grids of few steps differ in what they call the last noisy level."""


def drift_of_law(certify: ModuleType, sampler: Any, process: Any, times: Tensor, data: Any = DATA) -> float:
    """Distance of (mean, std) of x/alpha from the true ones at the end of a walk."""
    level = process(float(times[-1]))
    mean, variance = certify.end_law(build("sampler", sampler), data, process, times, data=data)
    true = math.sqrt((level.alpha * data.stds[0].item()) ** 2 + level.sigma**2)
    return math.hypot(
        mean / level.alpha - data.means[0, 0].item(), (math.sqrt(variance) - true) / level.alpha
    )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", names("sampler"))
def test_every_sampler_converges_to_the_data(certify: ModuleType, sampler: str, process: str) -> None:
    """By registry: on every grid of times the error of mean and std goes down with more steps."""
    path = build("process", process)
    stop = path.time(-math.log(LAST))
    # What chooses its own steps is as exact in few of ours; edm's levels reach the furthest.
    counts = (4, 16) if sampler in certify.ADAPTIVE else (40, 160) if process == "edm" else (25, 100)
    for name in names("times"):
        errors = []
        for steps in counts:
            times = build("times", name)(path, steps)
            times = torch.cat((times[times > stop], torch.tensor([stop], dtype=torch.float64)))
            errors.append(drift_of_law(certify, sampler, path, times))
        assert errors[1] < max(0.85 * errors[0], 2e-3), (name, errors)


STOCHASTIC = [
    {"name": "ancestral"},
    {"name": "ancestral", "variance": "large"},
    {"name": "ddim", "eta": 0.5},
    {"name": "ddim", "eta": 1.0},
    {"name": "euler_ancestral"},
    {"name": "euler_ancestral", "eta": 0.5},
    {"name": "dpm_solver_pp", "eta": 1.0},
    {"name": "dpm_solver_pp", "eta": 1.0, "order": 3},
    {"name": "dpm_solver_pp", "eta": 0.5, "variant": "heun"},
    {"name": "churn", "amount": 0.02},
    {"name": "churn", "sampler": {"name": "dpm2"}, "amount": 0.02},
    {"name": "churn", "sampler": {"name": "euler"}, "amount": 0.02},
    {"name": "predictor_corrector", "predictor": {"name": "reverse_diffusion"}},
    {"name": "predictor_corrector", "predictor": {"name": "lms"}},
]


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_noisy_settings_converge_too(certify: ModuleType, sampler: dict) -> None:
    process = build("process", "vp")
    grid = build("times", certify.EVEN_RATIOS)
    coarse, fine = (drift_of_law(certify, sampler, process, grid(process, n)) for n in (100, 400))
    # Churn and correctors add their noise at every step, so that it does not vanish with more of them.
    lasting = sampler["name"] in {"churn", "predictor_corrector"}
    assert fine < (0.01 if lasting else 0.3 * coarse), (coarse, fine)


def test_the_sde_solver_is_of_higher_order(certify: ModuleType) -> None:
    """In law, second-order SDE-DPM-Solver++ gains more than twice for twice the steps, first order twice."""
    process, grid = build("process", "vp"), build("times", certify.EVEN_RATIOS)
    gains = []
    for order in (1, 2, 3):
        sampler = {"name": "dpm_solver_pp", "eta": 1.0, "order": order}
        errors = [drift_of_law(certify, sampler, process, grid(process, n)) for n in (160, 320)]
        gains.append(math.log2(errors[0] / errors[1]))
    assert gains[0] == pytest.approx(1, abs=0.1)
    assert min(gains[1:]) > 1.8, gains


@pytest.mark.parametrize("row", range(7))
def test_marginal_variances(certify: ModuleType, row: int) -> None:
    """Sheet 10 §3, to all six printed digits."""
    variance, steps, small, large, ddim = certify.MARGINALS[row]
    assert certify.marginal({"name": "ancestral"}, variance, steps) == pytest.approx(small, abs=6e-7)
    assert certify.marginal({"name": "ddim", "eta": 1.0}, variance, steps) == pytest.approx(small, abs=6e-7)
    assert certify.marginal({"name": "euler_ancestral"}, variance, steps) == pytest.approx(small, abs=6e-7)
    large_kind = {"name": "ancestral", "variance": "large"}
    assert certify.marginal(large_kind, variance, steps) == pytest.approx(large, abs=6e-7)
    assert certify.marginal({"name": "ddim"}, variance, steps) == pytest.approx(ddim, abs=6e-7)


EXACT_FOR_A_POINT = [
    {"name": "ancestral"},
    {"name": "ddim", "eta": 0.3},
    {"name": "ddim", "eta": 1.0},
    {"name": "ddim"},
    {"name": "euler_ancestral"},
    {"name": "euler_ancestral", "eta": 0.7},
    {"name": "dpm_solver_pp", "eta": 1.0, "order": 1},
    {"name": "dpm_solver_pp", "eta": 1.0},
    {"name": "dpm_solver_pp", "eta": 0.5, "order": 3},
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", EXACT_FOR_A_POINT, ids=str)
def test_a_point_is_sampled_exactly(certify: ModuleType, sampler: dict, process: str) -> None:
    """Data at .7: after every step, however long, x is N(.7 alpha, sigma²)."""
    path, point = build("process", process), GaussianMixture.gaussian(0.7, 0.0)
    times = build("times", "uniform")(path, 7)
    for t, mean, variance in certify.laws(build("sampler", sampler), point, path, times, data=point):
        level = path(t)
        assert mean == pytest.approx(0.7 * level.alpha, rel=1e-9, abs=1e-10 * path.prior_std)
        assert variance == pytest.approx(level.sigma**2, rel=1e-9, abs=1e-20)


class Says(nn.Module):
    """The oracle of DATA that predicts data, and a constant for the variance."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return torch.cat((0.3 * x, torch.full_like(x, self.value)), dim=1)


@pytest.mark.parametrize("value, variance", [(-1.0, "small"), (1.0, "large")])
def test_the_ends_of_the_learned_range(certify: ModuleType, value: float, variance: Any) -> None:
    process = build("process", "betas")
    model = NetworkDenoiser(Says(value), process, PREDICTIONS["data"](), learned_range=True)
    times = build("times", "linspace")(process, 10)
    learned = certify.end_law(Ancestral("learned"), model, process, times, (0.0, 1.0))
    fixed = certify.end_law(Ancestral(variance), model, process, times, (0.0, 1.0))
    assert learned == pytest.approx(fixed, rel=1e-12)


def test_the_middle_of_the_learned_range_is_the_geometric_mean(certify: ModuleType) -> None:
    process = build("process", "betas")
    model = NetworkDenoiser(Says(0.0), process, PREDICTIONS["data"](), learned_range=True)
    times = build("times", "linspace")(process, 3)[:2]
    # One step only, started from nothing random: the variance is that of the step.
    stds = [
        math.sqrt(certify.end_law(Ancestral(kind), model, process, times, (0.0, 0.0))[1])
        for kind in ("small", "learned", "large")
    ]
    assert stds[1] == pytest.approx(math.sqrt(stds[0] * stds[2]), rel=1e-12)


def test_learned_variance_needs_a_model_that_says_it() -> None:
    process = build("process", "betas")
    times = build("times", "linspace")(process, 3)
    with pytest.raises(InvalidInput, match="variance"):
        sample(Ancestral("learned"), ReverseProcess(DATA, process), torch.zeros(1, 1).double(), times)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_euler_ancestral_is_ddim(process: str, eta: float) -> None:
    path = build("process", process)
    times = build("times", "uniform")(path, 9)
    x = path.prior_std * Noise([3, 4]).randn((2, 5), "x").double()
    data = GaussianMixture.gaussian(0.7, 0.5, 5)
    samples = [
        sample(
            build("sampler", {"name": name, "eta": eta}),
            ReverseProcess(data, path, source=Noise([3, 4])),
            x,
            times,
        )
        for name in ("ddim", "euler_ancestral")
    ]
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-12, atol=1e-12)


def test_ddim_with_all_its_noise_is_ancestral() -> None:
    path = build("process", "betas")
    times = build("times", "trailing")(path, 9)
    x, data = Noise([3]).randn((1, 5), "x").double(), GaussianMixture.gaussian(0.7, 0.5, 5)
    reverse = ReverseProcess(data, path, source=Noise([3]))
    ddim, ddpm = (
        sample(build("sampler", s), reverse, x, times) for s in ({"name": "ddim", "eta": 1.0}, "ancestral")
    )
    torch.testing.assert_close(ddim, ddpm, rtol=1e-10, atol=1e-12)


MORE_THAN_A_STEP = {"churn", "langevin", "predictor_corrector", "probability_flow"}
"""Samplers that noise x first, or walk the way to clean data in steps of their own."""


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", sorted(set(names("sampler")) - MORE_THAN_A_STEP))
def test_the_step_to_clean_data_is_the_estimate(sampler: str, process: str) -> None:
    """One step from any level to clean data gives E[x0 | x], without noise."""
    path, x = build("process", process), torch.tensor([[0.4], [-1.0]], dtype=torch.float64)
    t = 0.3
    reverse = ReverseProcess(DATA, path, source=Noise([1, 2]))
    arrived = sample(build("sampler", sampler), reverse, x, torch.tensor([t, 0.0], dtype=torch.float64))
    torch.testing.assert_close(arrived, DATA(x, path(t)).x0, rtol=1e-9, atol=1e-9)


def test_scaled_noise_of_euler_ancestral(certify: ModuleType) -> None:
    process = VE(0.02, 20.0)
    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    plain, doubled = (
        certify.end_law(
            build("sampler", {"name": "euler_ancestral", "noise_scale": scale}),
            DATA,
            process,
            times,
            (0.0, 0.0),
        )
        for scale in (1.0, 2.0)
    )
    assert doubled == pytest.approx((plain[0], 4 * plain[1]))


def test_denoisers_may_be_anything_callable() -> None:
    """A sampler asks no more of a denoiser than its estimate."""

    def zero(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Denoised(0 * x)

    process = build("process", "vp")
    times = build("times", "uniform")(process, 4)
    for name in names("sampler"):
        end = sample(build("sampler", name), ReverseProcess(zero, process), torch.ones(1, 1).double(), times)
        assert end.abs().max() < 1e-12, name
