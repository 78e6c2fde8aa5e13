"""The adaptive flow against the exact flow of a Gaussian, on every process."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput, MissingExtra, NotFinite
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, names
from sfumato.samplers.probability_flow import ProbabilityFlow

DATA = GaussianMixture.gaussian(0.7, 0.5)
PROCESSES = names("process")


def double(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Asked:
    """A denoiser that notes the levels it is asked at."""

    def __init__(self, denoiser: Callable[..., Denoised] = DATA) -> None:
        self.denoiser = denoiser
        self.levels: list[Level[float]] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.levels.append(level)
        return self.denoiser(x, level, condition)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_the_flow_of_a_gaussian(certify: ModuleType, method: Any, process: str) -> None:
    """From t = 1, alpha 0 or not, to the last noisy level: the closed form to 1e-8."""
    path = build("process", process)
    x = path.prior_std * torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    sampler = ProbabilityFlow(1e-11, 1e-11, method)
    arrived = sample(sampler, ReverseProcess(DATA, path), x, double(1.0, path.t_min))
    exact = certify.exact_flow(DATA, x, path(1.0), path(path.t_min))
    assert exact.std() > 0.3
    torch.testing.assert_close(arrived, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_whole_solve_ends_in_the_estimate(certify: ModuleType, process: str) -> None:
    """A walk of one step is the solve to t_min and the mean of the data there."""
    path = build("process", process)
    x = path.prior_std * torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    arrived = sample(ProbabilityFlow(1e-11, 1e-11), ReverseProcess(DATA, path), x, double(1.0, 0.0))
    last = path(path.t_min)
    exact = DATA(certify.exact_flow(DATA, x, path(1.0), last), last).x0
    torch.testing.assert_close(arrived, exact, rtol=0, atol=1e-8)


def test_below_the_last_noisy_level_only_the_estimate_is_left() -> None:
    path, asked = Flow(), Asked()
    x = double([0.4], [-1.0])
    t = path.t_min / 2
    arrived, used = ProbabilityFlow().step(ReverseProcess(asked, path), x, t, 0.0, 0)
    assert torch.equal(arrived, DATA(x, path(t)).x0)
    assert used == 1
    assert asked.levels == [path(t)]


def test_a_mixture_of_many_modes() -> None:
    """Where no closed form is left: a fourth-order walk of many steps arrives at the same points."""
    three = GaussianMixture(
        double([-1.0, 0.3], [0.4, 1.1], [1.5, -0.6]), double(0.3, 0.15, 0.45), double(0.3, 0.3, 0.4)
    )
    path, x = EDM(0.02, 30.0), 30 * Noise(range(20)).randn((20, 2), "x").double()
    reverse = ReverseProcess(three, path)
    solved = sample(ProbabilityFlow(1e-9, 1e-9), reverse, x, double(1.0, path.time(-math.log(0.05))))
    grid = build("times", {"name": "karras", "sigma_min": 0.05, "clean": False})(path, 1500)
    walked = sample(build("sampler", {"name": "unipc", "order": 3}), reverse, x, grid)
    assert solved.std(0).min() > 0.5
    torch.testing.assert_close(solved, walked, rtol=0, atol=2e-7)


@pytest.mark.parametrize("method", ["adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2"])
def test_the_error_follows_the_tolerance(certify: ModuleType, method: str) -> None:
    tolerances = (1e-3, 1e-5, 1e-7, 1e-9) if method in ("bosh3", "dopri5", "dopri8") else (1e-3, 1e-5)
    results = [certify.tolerance_error(method, tolerance, EDM()) for tolerance in tolerances]
    errors, used = zip(*results, strict=True)
    assert list(errors) == sorted(errors, reverse=True), errors
    assert list(used) == sorted(used), used
    # Starts are up to y = 2 and slopes up to 20 times that.
    assert all(error < 40 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    assert errors[-1] < 1e-3 * errors[0] or method in ("adaptive_heun", "fehlberg2")


def test_the_path_does_not_matter_to_the_solver() -> None:
    """The same ODE is solved: the same points, in the same number of estimates."""
    results = []
    for path in (VP(), VE(0.01, 50.0), Flow(), build("process", "cosine")):
        here, there = (path.time(-math.log(ratio)) for ratio in (30.0, 0.02))
        x = path(here).alpha * 30 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        arrived, used = ProbabilityFlow().step(ReverseProcess(DATA, path), x, here, there, 0)
        results.append((arrived / path(there).alpha, used))
    for arrived, used in results[1:]:
        torch.testing.assert_close(arrived, results[0][0], rtol=0, atol=1e-10)
        assert used == results[0][1]


@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.4, 0.1, 0.0], [1.0, 0.3]])
def test_estimates_are_counted_and_lie_inside_the_step(times: list[float]) -> None:
    """The state is their number, and none is asked beyond the end of its interval: there may be no level."""
    path, asked, x = Flow(), Asked(), Noise([1, 2]).randn((2, 1), "x").double()
    state = ProbabilityFlow().init(x)
    for t, s in pairwise(times):
        before = len(asked.levels)
        x, state = ProbabilityFlow().step(ReverseProcess(asked, path), x, t, s, state)
        assert state == len(asked.levels)
        sigmas = [level.sigma for level in asked.levels[before:]]
        assert max(sigmas) == t
        assert min(sigmas) == pytest.approx(max(s, path.t_min), abs=1e-15)


def test_every_sample_keeps_its_tolerance_in_any_company(certify: ModuleType) -> None:
    """Steps are the most demanding sample's: alone or among thousands that sit on the mean, whose errors are
    0 and would hide it in a mean over the batch.
    """
    path = EDM(0.02, 20.0)
    demanding = double([40.0])
    easy = torch.full((3000, 1), 0.7, dtype=torch.float64)
    alone, steps = ProbabilityFlow().step(ReverseProcess(DATA, path), demanding, 1.0, path.t_min, 0)
    among, more = ProbabilityFlow().step(
        ReverseProcess(DATA, path), torch.cat((demanding, easy)), 1.0, path.t_min, 0
    )
    exact = certify.exact_flow(DATA, demanding, path(1.0), path(path.t_min))
    error = float((alone - exact).abs().max())
    assert 1e-9 < error < 1e-4
    assert float((among[:1] - exact).abs().max()) == pytest.approx(error, rel=0.1)
    assert steps == more
    assert float((among[1:] - 0.7).abs().max()) < 1e-12


def test_single_precision_is_solved_to_its_own_rounding(certify: ModuleType) -> None:
    """A tolerance that float32 cannot tell apart is raised to what it can, and comes to an end."""
    path = Flow()
    x = torch.linspace(-3, 3, 13)[:, None]
    arrived, used = ProbabilityFlow(1e-12, 1e-12).step(ReverseProcess(DATA, path), x, 1.0, 0.01, 0)
    exact = certify.exact_flow(DATA, x.double(), path(1.0), path(0.01))
    assert arrived.dtype == torch.float32
    assert float((arrived.double() - exact).abs().max()) < 1e-5
    assert used < 200


def test_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    asked = Asked()
    with pytest.raises(MissingExtra, match=r"pip install 'sfumato\[ode\]'"):
        sample(ProbabilityFlow(), ReverseProcess(asked, VP()), torch.zeros(1, 1), double(1.0, 0.0))
    assert not asked.levels


def test_estimates_that_are_not_finite_are_named() -> None:
    def broken(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Denoised(x * math.nan)

    with pytest.raises(NotFinite, match=r"probability_flow: .*rtol"):
        sample(ProbabilityFlow(), ReverseProcess(broken, VP()), torch.ones(1, 1), double(1.0, 0.0))


def test_a_fault_of_the_denoiser_stays_its_own() -> None:
    def faulty(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        sample(ProbabilityFlow(), ReverseProcess(faulty, VP()), torch.ones(1, 1), double(1.0, 0.0))


@pytest.mark.parametrize("wrong", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.nan}])
def test_tolerances_that_are_none(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        ProbabilityFlow(**wrong)
