"""Churn: the variance it makes, where it ends, and EDM's stochastic sampler written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
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
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, sample
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, names
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.churn import Churn
from sfumato.samplers.heun import Heun
from sfumato.times.karras import Karras
from sfumato.times.uniform import Uniform

DATA = GaussianMixture.gaussian(0.7, 0.5)
PROCESSES = names("process")
MULTISTEP = ["dpm_solver_pp", "lms", "plms", "unipc"]


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


class Heard(Noise):
    """Noise that notes what for and when it was drawn."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(seeds)
        self.keys: list[tuple[str, float]] = []

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.keys.append((purpose, moment))
        return super().randn_like(x, purpose, moment)


class ByDraw(Noise):
    """Noise keyed by how many draws came before, to play the same numbers to a reference."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(seeds)
        self.drawn = 0

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.drawn += 1
        return super().randn_like(x, "played", self.drawn)


@dataclass(frozen=True)
class Still(Sampler):
    """A sampler that stays where it is and notes when it was asked to leave."""

    left: list[float] = field(default_factory=list)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        self.left.append(t)
        return x, state


@pytest.mark.parametrize("process", PROCESSES)
def test_levels_come_back_from_their_times(process: str) -> None:
    """What lets churn be a lift in time: the level of the time of a level is that level, to 1e-12."""
    path = build("process", process)
    lowest, highest = path.log_snr_range()
    for log_snr in torch.linspace(lowest + 0.1, highest - 0.1, 200, dtype=torch.float64).tolist():
        assert path(path.time(log_snr)).ratio == pytest.approx(math.exp(-log_snr), rel=1e-12)


@pytest.mark.parametrize("amount, grown", [(0.1, 1.1), (5.0, math.sqrt(2))])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_variance_before_the_inner_step(
    certify: ModuleType, process: str, amount: float, grown: float
) -> None:
    """s² + ς̂² exactly, ς̂ at most sqrt(2) ς, and the inner step leaves from the time of ς̂."""
    path, still = build("process", process), Still()
    for ratio in (0.05, 1.0, 20.0):
        t = path.time(-math.log(ratio))
        times = double(t, t / 2)
        mean, variance = certify.end_law(Churn(still, amount), DATA, path, times, data=DATA)
        level = path(still.left[-1])
        assert level.ratio == pytest.approx(ratio * grown, rel=1e-12)
        assert mean / level.alpha == pytest.approx(0.7, rel=1e-12)
        assert variance / level.alpha**2 == pytest.approx(0.25 + (ratio * grown) ** 2, rel=1e-12)


@pytest.mark.parametrize("ratio, churned", [(0.04, False), (0.05, True), (50.0, True), (51.0, False)])
def test_churn_has_a_range(ratio: float, churned: bool) -> None:
    still, path = Still(), EDM()
    t = ratio / 80.0
    reverse, x = ReverseProcess(DATA, path, source=Noise([1])), torch.zeros(1, 1, dtype=torch.float64)
    lifted, _ = Churn(still, 0.1, 0.05, 50.0, 1.003).step(reverse, x, t, t / 2, None)
    higher = path(still.left[0]).sigma
    assert (higher > ratio) == churned
    expected = 1.003 * math.sqrt(higher**2 - ratio**2) * Noise([1]).randn((1, 1), "churn", t).double()
    torch.testing.assert_close(lifted, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_lift_ends_where_the_process_does(certify: ModuleType, process: str) -> None:
    """Close to t = 1 it goes to t = 1 and no further, with no more noise than that; at t = 1 it is none."""
    path, still = build("process", process), Still()
    churn = Churn(still, 1.0)
    assert churn.lifted(path, 1.0) == 1.0
    for t in (0.9, 0.97, 0.999):
        mean, variance = certify.end_law(churn, DATA, path, double(t, 0.5), data=DATA)
        higher = still.left[-1]
        assert t < higher <= 1.0
        level = path(higher)
        assert mean == pytest.approx(0.7 * level.alpha, rel=1e-12)
        assert variance == pytest.approx((0.5 * level.alpha) ** 2 + level.sigma**2, rel=1e-12)
    if math.isfinite(path(1.0).ratio):
        assert higher == 1.0


@pytest.mark.parametrize("process", ["edm", "flow", "vp"])
@pytest.mark.parametrize("name", sorted(set(names("sampler")) - {"churn"}))
def test_no_churn_is_the_inner_sampler(name: str, process: str) -> None:
    """To the last bit, memory included; so is a range that no level falls in."""
    path, inner, seeds = build("process", process), build("sampler", name), [3, 4]
    times = Uniform()(path, 6)
    x = path.prior_std * Noise(seeds).randn((2, 1), "x").double()
    reverse = ReverseProcess(DATA, path, source=Noise(seeds))
    plain = sample(inner, reverse, x, times)
    assert torch.equal(sample(Churn(inner, 0.0), reverse, x, times), plain)
    if name not in MULTISTEP and inner.init(x) is None:
        assert torch.equal(sample(Churn(inner, 0.3, high=1e-9), reverse, x, times), plain)


@pytest.mark.parametrize(
    "steps, up, down", [(10, 1.304462, 0.084866), (18, 1.223008, 0.167759), (40, 1.200459, 0.190705)]
)
def test_the_deterministic_sampler_of_edm(steps: int, up: float, down: float) -> None:
    """Sheet 10 §2: sigma from 80, data N(.7, .5²), latents ±1; exact 1.195615 and .195635."""
    x = double([80.0], [-80.0])
    ours = sample(Churn(amount=0.0), ReverseProcess(DATA, EDM()), x, Karras()(EDM(), steps))
    assert ours.flatten().tolist() == pytest.approx([up, down], abs=6e-7)


def algorithm_2(
    x: Tensor, sigmas: list[float], churn: float, low: float, high: float, noise: float, source: Noise
) -> Tensor:
    """EDM's stochastic sampler as its paper prints it, in its own coordinates, on DATA."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - DATA(x, Level(1.0, sigma)).x0) / sigma

    for sigma, after in pairwise(sigmas):
        gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma + gamma * sigma
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * noise * source.randn_like(x)
        d = slope(x, raised)
        x_after = x + (after - raised) * d
        if after > 0:
            x_after = x + (after - raised) * (d / 2 + slope(x_after, after) / 2)
        x = x_after
    return x


@pytest.mark.parametrize("path", [EDM(), VP(), VE(0.001, 80.0), Flow()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("churn", [(40.0, 0.05, 50.0, 1.003), (5.0, 0.01, 1.0, 1.007)], ids=str)
def test_the_stochastic_sampler_of_edm(churn: tuple[float, float, float, float], path: Process) -> None:
    """The algorithm written out, with the same noise: the same samples to 1e-11, on any path."""
    seeds, steps = [1, 2, 3], 18
    total, low, high, noise = churn
    times = Karras(sigma_min=0.002, sigma_max=80.0)(EDM(), steps)
    sigmas = [EDM()(t).sigma for t in times.tolist()]
    y = 80 * Noise(seeds).randn((3, 1), "y").double()
    expected = algorithm_2(y, sigmas, total, low, high, noise, ByDraw(seeds))
    if not isinstance(path, EDM):
        times = double(*(path.time(-math.log(sigma)) for sigma in sigmas[:-1]), 0.0)
    reverse = ReverseProcess(DATA, path, source=ByDraw(seeds))
    sampler = Churn(Heun(), total / steps, low, high, noise)
    ours = sample(sampler, reverse, path(float(times[0])).alpha * y, times)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(expected, algorithm_2(y, sigmas, 0.0, low, high, noise, ByDraw(seeds)))


@pytest.mark.parametrize("name", MULTISTEP)
def test_samplers_with_a_memory_are_refused(name: str) -> None:
    asked = Asked()
    with pytest.raises(InvalidInput, match=r"churn\.sampler: .* carries something from step to step"):
        sample(
            Churn(build("sampler", name)), ReverseProcess(asked, VP()), torch.zeros(1, 1), Uniform()(VP(), 4)
        )
    assert not asked.levels


def test_two_steps_lifted_to_the_end_draw_different_noise() -> None:
    """Inner samplers that draw do so at the time they leave from: here t = 1 three times."""
    path, heard = EDM(), Heard([1])
    x = 80 * torch.ones(1, 1, dtype=torch.float64)
    churn = Churn(Ancestral(), 0.4)
    times = double(1.0, 0.95, 0.9, 0.4)
    assert [churn.lifted(path, t) for t in times[:3].tolist()] == [1.0, 1.0, 1.0]
    sample(churn, ReverseProcess(DATA, path, source=heard), x, times)
    assert [moment for _, moment in heard.keys].count(1.0) == 3
    assert len(set(heard.keys)) == len(heard.keys) == 5


@pytest.mark.parametrize("wrong", [{"amount": -0.1}, {"noise_scale": -1.0}, {"low": 2.0, "high": 1.0}])
def test_churn_that_makes_no_sense(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match=r"churn\."):
        Churn(**wrong)
