"""Samplers of score-based models: their variances in closed form, their order, and the published steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, sample
from sfumato.processes.betas import Betas
from sfumato.processes.flow import Flow
from sfumato.processes.ncsn import NCSN, variance_ratio
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.euler_maruyama import EulerMaruyama
from sfumato.samplers.langevin import Langevin
from sfumato.samplers.predictor_corrector import PredictorCorrector
from sfumato.samplers.reverse_diffusion import ReverseDiffusion
from sfumato.times.trailing import Trailing
from sfumato.times.uniform import Uniform

S2 = 0.25
DATA = GaussianMixture.gaussian(0.0, math.sqrt(S2))
THREE = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.4, 1.1], [1.5, -0.6]], dtype=torch.float64),
    torch.tensor([0.3, 0.1, 0.45], dtype=torch.float64),
    torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
)


# ---- variances ----


def power(level: Level[float]) -> float:
    """Variance at a level of data of variance S2."""
    return level.alpha**2 * S2 + level.sigma**2


@pytest.mark.parametrize("snr", [0.05, 0.176, 0.6])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_the_stationary_variance_of_langevin_steps(certify: ModuleType, process: str, snr: float) -> None:
    """v / (1 - ε/(2v)) with ε = 2 (snr sigma)²: sheet 10 §3."""
    path = build("process", process)
    t = path.time(-math.log(0.8))
    level = path(t)
    v, size = power(level), 2 * (snr * level.sigma) ** 2
    stays = v / (1 - size / (2 * v))
    walker = Langevin(snr, steps=4)
    walk = torch.tensor([t, t - 1e-9], dtype=torch.float64)
    for start, decay in ((stays, None), (3 * stays, (1 - size / v) ** 8)):
        variance = certify.end_law(walker, DATA, path, walk, (0.0, start))[1]
        # x/alpha is carried on, which 1e-9 further is nearly nothing.
        expected = stays if decay is None else stays + decay * (start - stays)
        assert variance == pytest.approx(expected, rel=1e-7)


def test_the_annealed_ladder_leaves_the_variance_of_technique_4(certify: ModuleType) -> None:
    """Data at a point, CIFAR-10's ladder and steps: at every level the variance left is the published ratio,
    exactly once the level above is left with it and by the recursion from the start.
    """
    process, point = NCSN(0.01, 50.0, 232), GaussianMixture.gaussian(0.0, 0.0)
    snr = math.sqrt(6.2e-6 / 2) / 0.01
    gamma, size = process.ratio, 0.062
    k = 2 * size / (1 - (1 - size) ** 2)
    times = Trailing()(process, 232)[:24]
    left = 1.0
    for (t, s), (_, _, variance) in zip(
        pairwise(times.tolist()),
        certify.laws(Langevin(snr, 5), point, process, times, (0.0, process.sigma_max**2)),
        strict=True,
    ):
        left = (1 - size) ** 10 * (left * (1 if t == 1 else gamma**2) - k) + k
        assert variance / process(t).sigma ** 2 == pytest.approx(left, rel=1e-10)
        assert s < t
    one = torch.tensor([0.5, 0.499], dtype=torch.float64)
    start = (0.0, (gamma * process(0.5).sigma) ** 2)
    variance = certify.end_law(Langevin(snr, 5), point, process, one, start)[1]
    assert variance / process(0.5).sigma ** 2 == pytest.approx(variance_ratio(snr, 5, gamma), rel=1e-10)
    assert variance_ratio(snr, 5, gamma) == pytest.approx(1.0555, abs=6e-5)


def corrected(v: float, here: Level[float], snr: float) -> float:
    size = 2 * (snr * here.sigma) ** 2
    return (1 - size / power(here)) ** 2 * v + 2 * size


def link(here: Level[float], there: Level[float]) -> tuple[float, float]:
    """a and β of the forward chain from there to here."""
    a = here.alpha / there.alpha
    return a, here.sigma**2 - (a * there.sigma) ** 2


def ancestral(v: float, here: Level[float], there: Level[float]) -> float:
    a, beta = link(here, there)
    x0 = here.alpha * S2 / power(here)
    if there.sigma == 0:
        return x0**2 * v
    factor = (a * there.sigma**2 + there.alpha * beta * x0) / here.sigma**2
    return factor**2 * v + beta * there.sigma**2 / here.sigma**2


def reverse_diffusion(v: float, here: Level[float], there: Level[float]) -> float:
    a, beta = link(here, there)
    if there.sigma == 0:
        return (here.alpha * S2 / power(here)) ** 2 * v
    return (2 - a - beta / power(here)) ** 2 * v + beta


def ddim(v: float, here: Level[float], there: Level[float]) -> float:
    x0 = here.alpha * S2 / power(here)
    return (there.alpha * x0 + there.sigma * (1 - here.alpha * x0) / here.sigma) ** 2 * v


RECURSIONS: dict[str, Callable[[float, Level[float], Level[float]], float]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "reverse_diffusion": reverse_diffusion,
}


@pytest.mark.parametrize("process", ["betas", "ncsn", "sub_vp"])
@pytest.mark.parametrize("predictor", sorted(RECURSIONS))
def test_the_variance_of_predictor_and_corrector(certify: ModuleType, predictor: str, process: str) -> None:
    """V' = A² V + Σ, corrector first: solved here apart from sfumato, and read off the linear map."""
    path, snr = build("process", process), 0.2
    sampler = PredictorCorrector(build("sampler", predictor), Langevin(snr, steps=2))
    times = build("times", "karras")(path, 25)
    v = start = path.prior_std**2
    for (t, s), (_, mean, variance) in zip(
        pairwise(times.tolist()), certify.laws(sampler, DATA, path, times, (0.0, start)), strict=True
    ):
        here, there = path(t), path(s)
        v = RECURSIONS[predictor](corrected(corrected(v, here, snr), here, snr), here, there)
        assert variance == pytest.approx(v, rel=1e-9)
        assert mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "sampler", ["euler_maruyama", "langevin", "predictor_corrector", "reverse_diffusion"]
)
def test_drawn_samples_have_that_variance(certify: ModuleType, sampler: str) -> None:
    """Monte Carlo, 4000 walks of 4 numbers: within three standard errors of the exact law."""
    path, count = NCSN(0.05, 5.0, 30), 4000
    data = GaussianMixture.gaussian(0.7, 0.5, 4)
    times = Trailing()(path, 30)
    mean, variance = certify.end_law(
        build("sampler", sampler), GaussianMixture.gaussian(0.7, 0.5), path, times, (0.0, 25.0)
    )
    reverse = ReverseProcess(data, path, source=Noise(torch.arange(count)))
    x = sample(build("sampler", sampler), reverse, reverse.prior((count, 4)).double(), times)
    assert float(x.mean()) == pytest.approx(mean, abs=3 * math.sqrt(variance / (4 * count)))
    assert float(x.var()) == pytest.approx(variance, rel=3 * math.sqrt(2 / (4 * count)))


# ---- Euler-Maruyama ----


def test_the_recursion_of_euler_maruyama(certify: ModuleType) -> None:
    """On VP: x' = x + h (½β x + β score) + sqrt(β h) z."""
    times = Uniform(clean=False)(VP(), 50)
    v = 1.0
    for (t, s), (_, _, variance) in zip(
        pairwise(times.tolist()), certify.laws(EulerMaruyama(), DATA, VP(), times, (0.0, 1.0)), strict=True
    ):
        h, beta = t - s, 0.1 + 19.9 * t
        v = (1 + h * beta * (0.5 - 1 / power(VP()(t)))) ** 2 * v + beta * h
        assert variance == pytest.approx(v, rel=1e-9)


@pytest.mark.parametrize("process", ["cosine", "edm", "flow", "ncsn", "sub_vp", "ve", "vp"])
@pytest.mark.parametrize("sampler", ["euler_maruyama", "reverse_diffusion"])
def test_weak_order_one(certify: ModuleType, sampler: str, process: str) -> None:
    """Errors of mean and variance at a middle time halve with the step; on flow and cosine from alpha 0."""
    path, data = build("process", process), GaussianMixture.gaussian(0.7, 0.5)
    # Where sigma explodes, from where a step of the finest grids is a small part of it.
    start = 1.0 if path(1.0).sigma <= 1 else path.time(-math.log(2.0))
    stop = path.time(-math.log(0.5))
    level = path(stop)
    errors = []
    for steps in (100, 200, 400):
        times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
        mean, variance = certify.end_law(build("sampler", sampler), data, path, times, data=data)
        errors.append((abs(mean - level.alpha * 0.7), abs(variance - power(level))))
    for kind in zip(*errors, strict=True):
        if max(kind) > 1e-9:
            assert min(certify.slopes(kind)) > 0.9, errors
            assert max(certify.slopes(kind)) < 1.2, errors


@pytest.mark.parametrize("sampler", [EulerMaruyama(), ReverseDiffusion()], ids=str)
def test_a_step_from_pure_noise_forgets_it(sampler: Sampler) -> None:
    """Where alpha is 0, x says nothing of the data, and the exact x_s does not depend on it."""
    x = torch.tensor([[3.0, -1.0], [0.1, 0.2]], dtype=torch.float64)
    reverse = ReverseProcess(THREE, Flow(), source=Noise([5, 5]))
    arrived, _ = sampler.step(reverse, x, 1.0, 0.9, None)
    mean = (THREE.weights[:, None] * THREE.means).sum(0)
    z = reverse.randn_like(x, 1.0)
    torch.testing.assert_close(arrived, 0.1 * mean + 0.9 * z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(arrived[0], arrived[1], rtol=0, atol=1e-14)


# ---- the published steps ----


def stepped(sampler: Sampler, process: Process, x: Tensor, t: float, s: float, source: Noise) -> Tensor:
    reverse = ReverseProcess(THREE, process, source=source)
    return sampler.step(reverse, x, t, s, None)[0]


POINTS = torch.tensor([[0.4, -1.3], [2.0, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize("index", [1, 10, 499, 999])
def test_the_predictors_of_score_sde_on_betas(certify: ModuleType, index: int) -> None:
    """f = sqrt(1 - β) x - x and G = sqrt(β); its "ancestral" is ours with the large variance."""
    process = Betas()
    beta, t, s = process.betas[index].item(), (index + 1) / 1000, index / 1000
    score = THREE.score(POINTS, process(t))
    for z in (0.0, 1.0, -0.7):
        published = POINTS - (math.sqrt(1 - beta) * POINTS - POINTS) + beta * score + math.sqrt(beta) * z
        ours = stepped(ReverseDiffusion(), process, POINTS, t, s, certify.Constant(2, z))
        torch.testing.assert_close(ours, published, rtol=1e-10, atol=1e-12)
        published = (POINTS + beta * score) / math.sqrt(1 - beta) + math.sqrt(beta) * z
        ours = stepped(Ancestral("large"), process, POINTS, t, s, certify.Constant(2, z))
        torch.testing.assert_close(ours, published, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("index", [1, 10, 499, 999])
@pytest.mark.parametrize("process", [NCSN(), VE()], ids=["ncsn", "ve"])
def test_the_predictors_of_score_sde_on_a_ladder(certify: ModuleType, process: Process, index: int) -> None:
    """f = 0 and G² = sigma_i² - sigma_{i-1}²: reverse diffusion is there ancestral with the large variance,
    and score_sde's "ancestral" ours with the small one.
    """
    times = [(i + 1) / 1000 if isinstance(process, NCSN) else i / 999 for i in (index, index - 1)]
    (t, s), (high, low) = times, (0.01 * 5000 ** (i / 999) for i in (index, index - 1))
    x = POINTS * max(1.0, high)
    gap = high**2 - low**2
    for z in (0.0, 1.0):
        mean = x + gap * THREE.score(x, Level(1.0, high))
        for sampler, std in (
            (ReverseDiffusion(), math.sqrt(gap)),
            (Ancestral("large"), math.sqrt(gap)),
            (Ancestral(), math.sqrt(low**2 * gap / high**2)),
        ):
            if low == 0.01 and isinstance(process, VE):
                continue  # VE's own t = 0 is clean data, not sigma_min.
            torch.testing.assert_close(
                stepped(sampler, process, x, t, s, certify.Constant(2, z)),
                mean + std * z,
                rtol=1e-9,
                atol=1e-10,
            )


def test_reverse_diffusion_is_no_other_sampler_where_alpha_falls(certify: ModuleType) -> None:
    """On betas it differs from ancestral by the second order of β, and from Euler-Maruyama on VP by h²."""
    gaps = []
    for steps in (100, 200, 400):
        t, s = 0.5, 0.5 - 1 / steps
        ours = stepped(ReverseDiffusion(), VP(), POINTS, t, s, certify.Constant(2, 0.0))
        gaps.append(
            [
                float((ours - stepped(other, VP(), POINTS, t, s, certify.Constant(2, 0.0))).abs().max())
                for other in (Ancestral("large"), EulerMaruyama())
            ]
        )
    for kind in zip(*gaps, strict=True):
        assert kind[0] / kind[1] == pytest.approx(4, rel=0.15)
        assert kind[1] / kind[2] == pytest.approx(4, rel=0.08)
        assert kind[2] > 1e-5


def test_annealed_langevin_is_that_of_ncsn() -> None:
    """Its loop, written out: ε_i = step_lr (sigma_i / sigma_L)², and a last sigma_L² score."""
    process, source, step_lr = NCSN(0.1, 4.0, 6), Noise([3, 8]), 6e-4
    x = start = 4 * Noise([1, 2]).randn((2, 2), "x").double()
    for k in reversed(range(6)):
        t = (k + 1) / 6
        sigma = 0.1 * 40 ** (k / 5)
        for turn in range(3):
            size = step_lr * (sigma / 0.1) ** 2
            z = source.randn_like(x, f"langevin {turn}", t)
            x = x + size * THREE.score(x, Level(1.0, sigma)) + math.sqrt(2 * size) * z
    x = x + 0.1**2 * THREE.score(x, Level(1.0, 0.1))
    ours = sample(
        Langevin(math.sqrt(step_lr / 2) / 0.1, 3),
        ReverseProcess(THREE, process, source=source),
        start,
        Trailing()(process, 6),
    )
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
