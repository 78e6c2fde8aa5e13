"""Classifier guidance: with a classifier known in closed form, what it samples is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.classifier import LogProbability, NoisyClassifier
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.classifier import Classifier
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.processes.betas import Betas
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.ddim import DDIM

NOTHING = Condition()
LEVELS = [Level(0.999, 0.04), Level(0.6, 0.8), Level(1.0, 3.0), Level(0.05, 0.99), Level(1.0, 80.0)]
X = 2 * Noise(range(5)).randn((5, 2), "x").double()
THREE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.2, -2.0]], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.8], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
)


def one(k: int) -> GaussianMixture:
    """The k-th component alone: the data of a class."""
    return GaussianMixture(THREE.means[k : k + 1], THREE.stds[k : k + 1], torch.ones(1).double())


def bayes(mixture: GaussianMixture, k: int) -> LogProbability:
    """The exact noisy classifier of a mixture's components."""

    def log_p(x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        return mixture._joint(x, level).log_softmax(1)[:, k]

    return log_p


def linear(mixture: GaussianMixture, slope: float) -> LogProbability:
    """log p(y | x_t) = slope · D(x_t) + constant."""
    return lambda x, level, condition: slope * mixture(x, level).x0.sum(1) - 3.0


class Counted:
    """A classifier that counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        self.calls += 1
        return bayes(THREE, 1)(x, level, condition)


def guided(scale: float, model: Any, denoiser: Any = THREE) -> Any:
    return Classifier(scale, model)(denoiser, NOTHING)


# Estimates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("k", range(3))
def test_the_exact_classifier_makes_the_unconditional_model_conditional(level: Level[float], k: int) -> None:
    torch.testing.assert_close(
        guided(1.0, bayes(THREE, k))(X, level, NOTHING).x0, one(k)(X, level).x0, rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("level", LEVELS)
def test_a_classifier_linear_in_the_estimate_moves_the_mean(level: Level[float]) -> None:
    """N(m, s²) becomes N(m + γ s², s²), scale and slope alike."""
    plain, moved = GaussianMixture.gaussian(0.7, 0.5, 2), GaussianMixture.gaussian(0.7 + 3.0 * 0.25, 0.5, 2)
    for scale in (1.0, 1.5, -2.0):
        x0 = guided(scale, linear(plain, 3.0 / scale), plain)(X, level, NOTHING).x0
        torch.testing.assert_close(x0, moved(X, level).x0, rtol=1e-12, atol=1e-12)


def test_plus_and_minus_mu() -> None:
    """Score -x/v + (μ/v) tanh(μx/v) with v = s² + sigma²; guided by +μ, (μ - x)/v."""
    mu, s = 2.0, 0.5
    both = GaussianMixture(
        torch.tensor([[mu], [-mu]]).double(), s * torch.ones(2).double(), torch.full((2,), 0.5).double()
    )
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None]
    for sigma in (0.1, 1.0, 10.0):
        v = s**2 + sigma**2
        plain, steered = (
            ReverseProcess(d, EDM()).score(x, Level(1.0, sigma))
            for d in (both, guided(1.0, bayes(both, 0), both))
        )
        torch.testing.assert_close(plain, -x / v + mu / v * torch.tanh(mu * x / v), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(steered, (mu - x) / v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_it_is_classifier_free_guidance_by_the_classifier_that_is_implied(scale: float) -> None:
    """Gaussians of equal variance: log p(x | y) - log p(x) as classifier gives N(μ_u + w (μ_c - μ_u), s²)."""
    free, told = GaussianMixture.gaussian(0.0, 0.5, 2), GaussianMixture.gaussian(2.0, 0.5, 2)

    def both(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        assert condition.vector is not None
        return Denoised(torch.where(condition.vector > 0, told(x, level).x0, free(x, level).x0))

    def implied(x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        return told.log_prob(x, level) - free.log_prob(x, level)

    yes, no = Condition(vector=torch.ones(5, 1)), Condition(vector=torch.zeros(5, 1))
    for level in LEVELS:
        mine = guided(scale, implied, free)(X, level, NOTHING).x0
        usual = ClassifierFree(scale)(both, no)(X, level, yes).x0
        torch.testing.assert_close(mine, usual, rtol=1e-9, atol=1e-10)
        exact = GaussianMixture.gaussian(2.0 * scale, 0.5, 2)(X, level).x0
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-10)


def test_scale_zero_is_the_model_itself_and_asks_nobody() -> None:
    counted = Counted()
    assert guided(0.0, counted) is THREE
    assert counted.calls == 0
    assert Classifier(0.0)(THREE, NOTHING) is THREE


def test_score_and_noise_are_moved_as_in_the_paper() -> None:
    """score + s g, and noise - s sqrt(1 - ᾱ) g: algorithm 2."""
    t, scale = 0.4, 2.5
    level = VP()(t)
    x = X.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(bayes(THREE, 2)(x, level, NOTHING).sum(), x)
    plain = ReverseProcess(THREE, VP())
    steered = ReverseProcess(guided(scale, bayes(THREE, 2)), VP())
    torch.testing.assert_close(steered.score(X, t), plain.score(X, t) + scale * g, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        steered.noise(X, t),
        plain.noise(X, t) - scale * math.sqrt(1 - level.alpha**2) * g,
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_mean_of_an_ancestral_step_moves_by_the_larger_variance(variance: str) -> None:
    """(alpha_s / alpha_t) β scale g; the paper's Σ g with Σ = β, but for the factor of one step."""
    process, t, s, scale = Betas(), 0.5, 0.499, 2.0
    here, there = process(t), process(s)
    x = X.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(bayes(THREE, 0)(x, here, NOTHING).sum(), x)

    def says(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Denoised(THREE(x, level).x0, torch.full_like(x, 0.3))

    steps = [
        Ancestral(variance).step(ReverseProcess(d, process, NOTHING, Noise(range(5))), X, t, s, None)[0]  # type: ignore[arg-type]
        for d in (says, guided(scale, bayes(THREE, 0), says))
    ]
    beta = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
    torch.testing.assert_close(
        steps[1] - steps[0], there.alpha / here.alpha * beta * scale * g, rtol=1e-9, atol=1e-12
    )
    assert there.alpha / here.alpha == pytest.approx(1, abs=0.006)


# Where there is no signal -----------------------------------------------------------------------------------


def test_at_pure_noise_it_moves_to_the_mean_of_the_class() -> None:
    """At alpha = 0 the limit: E[x0 | y], of which flow's first step is made."""
    for level in (Level(0.0, 1.0), Level(1e-30, 5.0), Level(1e-4, 1.0)):
        x0 = guided(1.0, bayes(THREE, 1))(level.sigma * X, level, NOTHING).x0
        torch.testing.assert_close(x0, THREE.means[1].expand(5, 2), rtol=0, atol=2e-2)
        gauss = GaussianMixture.gaussian(0.7, 0.5, 2)
        x0 = guided(1.0, linear(gauss, 3.0), gauss)(level.sigma * X, level, NOTHING).x0
        torch.testing.assert_close(x0, torch.full((5, 2), 1.45).double(), rtol=0, atol=1e-4)


def test_float32_is_as_good_at_pure_noise() -> None:
    fine = guided(1.0, bayes(THREE, 1))(X, Level(0.0, 1.0), NOTHING).x0
    coarse = guided(1.0, bayes(THREE, 1))(X.float(), Level(0.0, 1.0), NOTHING).x0
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), fine, rtol=0, atol=5e-3)


class Bayes(nn.Module):
    """The exact logits of a mixture on a process, as a network of (x, time)."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return THREE._joint(x, self.process(time.double()))


@pytest.mark.parametrize("path", [VP(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_a_trained_classifier_is_asked_along_any_path(path: Process) -> None:
    """A classifier of VP, told the level by its log-SNR, is the exact one on every path."""
    classifier = NoisyClassifier(Bayes(VP()), VP(), "label", "time")
    told = classifier.likelihood(torch.eye(3)[[1]])
    assert told.least == pytest.approx(VP()(1.0).alpha / VP()(1.0).sigma)
    for t in (0.1, 0.5, 0.9):
        x, level = X * path(t).norm, path(t)
        mine = guided(1.0, told)(x, level, NOTHING).x0
        # The network is told its time in float32.
        torch.testing.assert_close(mine, one(1)(x, level).x0, rtol=2e-5, atol=2e-5)


def test_a_classifier_is_not_asked_beyond_its_training() -> None:
    """At lower SNR than VP ends with, sigma² / alpha must not outgrow a gradient that no longer shrinks."""
    told = NoisyClassifier(Bayes(VP()), VP(), "label", "time").likelihood(torch.eye(3)[[0]])
    x0 = guided(1.0, told)(X * 800, Level(1.0, 800.0), NOTHING).x0
    torch.testing.assert_close(x0, THREE.means[0].expand(5, 2), rtol=0, atol=0.1)


def test_levels_of_a_batch_are_those_of_its_rows() -> None:
    classifier = NoisyClassifier(Bayes(VP()), VP(), "label", "time")
    levels = LEVELS[:3]
    every = Level(*(torch.tensor(part).view(3, 1) for part in zip(*levels, strict=True)))
    together = classifier.logits(X[:3].float(), every)
    for row, level in enumerate(levels):
        alone = classifier.logits(X[row : row + 1].float(), level)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


# Walks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "sampler",
    [
        "ancestral",
        "ddim",
        "dpm2",
        "dpm_solver_pp",
        "euler",
        "euler_ancestral",
        "heun",
        "lms",
        "plms",
        "unipc",
    ],
)
def test_every_sampler_walks_to_the_class(sampler: str, path: Process) -> None:
    """Guided by the exact classifier, the walk of the unconditional model is that of the conditional one."""
    grid = build("times", "karras")(path, 12)
    if path(float(grid[0])).alpha == 0:
        grid = grid[1:]
    ends = []
    for denoiser in (one(1), guided(1.0, bayes(THREE, 1))):
        reverse = ReverseProcess(denoiser, path, NOTHING, Noise(range(5)))
        x = reverse.prior((5, 2), float(grid[0])).double()
        ends.append(sample(build("sampler", sampler), reverse, x, grid))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-7)


def test_the_walk_ends_in_the_closed_form() -> None:
    """200 steps of Heun from 80 z: m + γ s² + (x - m - γ s²) s / sqrt(s² + 80²)."""
    plain = GaussianMixture.gaussian(0.7, 0.5)
    reverse = ReverseProcess(guided(2.0, linear(plain, 2.0), plain), EDM(), NOTHING, Noise(range(3)))
    z = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    end = sample(build("sampler", "heun"), reverse, 80 * z, build("times", "karras")(EDM(), 200))
    mean = 0.7 + 4.0 * 0.25
    torch.testing.assert_close(end, mean + (80 * z - mean) * 0.5 / math.hypot(0.5, 80), rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [0.7, 4.0])
def test_guided_ddim_walks_alike_on_paths_that_are_one(scale: float) -> None:
    """A walk at the same signal-to-noise ratios along VP and EDM ends in the same place."""
    ends = []
    for path in (VP(), EDM()):
        times = torch.tensor([path.time(r) for r in (-2.0, -1.0, 0.0, 1.0, 2.0)], dtype=torch.float64)
        reverse = ReverseProcess(guided(scale, bayes(THREE, 2)), path)
        x = sample(DDIM(), reverse, X * path(float(times[0])).norm, times)
        ends.append(x / path(float(times[-1])).norm)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-10)


# Gradients in any mode --------------------------------------------------------------------------------------


def test_inference_mode_changes_nothing() -> None:
    level, model = LEVELS[1], bayes(THREE, 1)
    plain = guided(2.0, model)(X, level, NOTHING).x0
    with torch.inference_mode():
        x = X + 0
        assert x.is_inference()
        told = Condition(vector=x + 1)
        assert torch.equal(guided(2.0, model)(x, level, told).x0, plain)
        classes = torch.eye(3)[[1]]
        likelihood = NoisyClassifier(Bayes(VP()), VP(), "label", "time").likelihood(classes)
        inside = guided(2.0, likelihood)(x.float(), level, told).x0
    with torch.no_grad():
        assert torch.equal(guided(2.0, model)(X, level, NOTHING).x0, plain)
        assert torch.equal(guided(2.0, likelihood)(X.float(), level, NOTHING).x0, inside)


def test_the_condition_may_be_part_of_the_classifier() -> None:
    """What was made in inference mode is kept for the gradient."""

    def by_vector(x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        assert condition.vector is not None
        return (torch.tanh(x) * condition.vector).sum(1)

    with torch.inference_mode():
        told = Condition(vector=X + 1)
        x0 = guided(1.0, by_vector)(X, Level(0.6, 0.8), told).x0
    expected = THREE(X, Level(0.6, 0.8)).x0 + 0.64 / 0.6 * (X + 1) / torch.cosh(X) ** 2
    torch.testing.assert_close(x0, expected, rtol=1e-12, atol=1e-12)


def test_the_guided_estimate_can_be_differentiated() -> None:
    """By autograd and by torch.func: its Jacobian is that of the conditional model."""
    level = LEVELS[1]
    steered, exact = guided(1.0, bayes(THREE, 1)), one(1)
    wanted = torch.autograd.functional.jacobian(lambda x: exact(x, level).x0.sum(0), X)
    mine = torch.autograd.functional.jacobian(lambda x: steered(x, level, NOTHING).x0.sum(0), X)
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-10)
    along = torch.ones_like(X)
    forward = torch.func.jvp(lambda x: steered(x, level, NOTHING).x0, (X,), (along,))[1]
    backward = torch.func.jvp(lambda x: exact(x, level).x0, (X,), (along,))[1]
    torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-10)


# Rows -------------------------------------------------------------------------------------------------------


def test_rows_without_a_class_are_left_alone_and_a_stacked_batch_is_told_twice() -> None:
    classifier = NoisyClassifier(Bayes(VP()), VP(), "label", "time")
    classes = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    steered, level = guided(1.0, classifier.likelihood(classes)), VP()(0.5)
    x0, plain = steered(X, level, NOTHING).x0, THREE(X, level).x0
    assert torch.equal(x0[[1, 3]], plain[[1, 3]])
    for row, k in ((0, 1), (2, 0), (4, 2)):
        torch.testing.assert_close(x0[row], one(k)(X, level).x0[row], rtol=1e-5, atol=1e-5)
    assert torch.equal(steered(torch.cat((X, X)), level, NOTHING).x0, torch.cat((x0, x0)))


def test_the_variance_is_the_denoisers() -> None:
    variance = torch.rand_like(X)
    x0 = guided(1.0, bayes(THREE, 1), lambda x, level, told: Denoised(THREE(x, level).x0, variance))
    assert x0(X, LEVELS[0], NOTHING).variance is variance


# Settings ---------------------------------------------------------------------------------------------------


def test_settings_come_back_with_the_path() -> None:
    told = {"name": "classifier", "scale": 2.0, "model": "runs/classifier"}
    assert build("guidance", told) == Classifier(2.0, "runs/classifier")
    assert describe(Classifier(2.0, "runs/classifier")) == told


@pytest.mark.parametrize("model", [None, "runs/classifier"])
def test_without_a_classifier_there_is_no_guidance(model: str | None) -> None:
    with pytest.raises(InvalidInput, match="give the folder of a trained one to"):
        guided(1.0, model)
    with pytest.raises(InvalidInput, match="int is no path, model or function"):
        Classifier(1.0, 7)


def test_a_classifier_does_not_denoise() -> None:
    classifier = NoisyClassifier(Bayes(VP()), VP(), "label", "time")
    with pytest.raises(InvalidInput, match="a classifier makes no pictures"):
        classifier(X, LEVELS[0], NOTHING)
    with pytest.raises(InvalidInput, match="2 classes for a network of 3"):
        classifier.likelihood(torch.eye(2))(X, LEVELS[0], NOTHING)
