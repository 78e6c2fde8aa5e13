"""Inverse problems: on Gaussian data and linear measurements the posterior is known in closed form."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.operators import Blur, Downsample, Grey, Mask
from sfumato.core.prediction import Velocity
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.generation.generate import generate
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.interval import Interval
from sfumato.guidance.inverse_problem import InverseProblem, conjugate_gradients
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.processes.edm import EDM
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.heun import Heun
from sfumato.times.karras import Karras

NOTHING = Condition()
LEVELS = [Level(0.8, 0.6), Level(0.05, 0.999), Level(1.0, 0.01), Level(1.0, 50.0)]
DRAWS = Noise(range(4)).randn((4, 12), "problem").double()
FACTOR = DRAWS[:, :4]
A = DRAWS[:2, 4:8]
Y = DRAWS[2:3, 4:6]
X = 2 * DRAWS[:, 8:]


class Correlated:
    """Data N(mean, covariance) in four dimensions, itself a denoiser."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition = NOTHING) -> Denoised:
        gain = level.alpha * self.covariance @ torch.linalg.inv(self.of_x(level))
        return Denoised(self.mean + (x - level.alpha * self.mean) @ gain.T)

    def of_x(self, level: Level[Any]) -> Tensor:
        """Covariance of x_t."""
        return level.alpha**2 * self.covariance + level.sigma**2 * torch.eye(4).double()

    def given_x(self, level: Level[Any]) -> Tensor:
        """Covariance of x0 given x_t."""
        return self.covariance - level.alpha**2 * self.covariance @ torch.linalg.inv(self.of_x(level)) @ (
            self.covariance
        )

    def posterior(self, noise_std: float) -> Correlated:
        """The data given the measurement."""
        spread = A @ self.covariance @ A.T + noise_std**2 * torch.eye(2).double()
        gain = self.covariance @ A.T @ torch.linalg.inv(spread)
        return Correlated(
            self.mean + (Y[0] - A @ self.mean) @ gain.T, self.covariance - gain @ A @ self.covariance
        )


DATA = Correlated(
    torch.tensor([0.5, -1.0, 0.0, 2.0]).double(), FACTOR @ FACTOR.T + 0.1 * torch.eye(4).double()
)
WHITE = Correlated(DATA.mean, torch.eye(4).double())


def measure(x: Tensor) -> Tensor:
    return x @ A.T


def problem(method: Any = "moments", **settings: Any) -> InverseProblem:
    return InverseProblem(measure, Y, method, **{"iterations": 2, **settings})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_posterior_mean(noise_std: float, level: Level[float]) -> None:
    """E[x0 | x_t, y] is what the denoiser of the posterior says; two measurements take two iterations."""
    ours = problem(noise_std=noise_std)(DATA, NOTHING)(X, level, NOTHING).x0
    exact = DATA.posterior(noise_std)(X, level).x0
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)
    short = problem(noise_std=noise_std, iterations=1)(DATA, NOTHING)(X, level, NOTHING).x0
    assert (short - exact).abs().max() > 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_the_white_posterior_mean(level: Level[float]) -> None:
    """ΠGDM takes data for white: exact where they are, not where they are not."""
    ours = problem("pigdm", noise_std=0.3)(WHITE, NOTHING)(X, level, NOTHING).x0
    torch.testing.assert_close(ours, WHITE.posterior(0.3)(X, level).x0, rtol=1e-9, atol=1e-9)
    if level.sigma > 0.1:
        other = problem("pigdm", noise_std=0.3)(DATA, NOTHING)(X, level, NOTHING).x0
        assert (other - DATA.posterior(0.3)(X, level).x0).abs().max() > 0.01


def test_pure_noise_leaves_the_posterior_of_the_data() -> None:
    """Where alpha is 0 the derivative of the estimate is, too; a level near by is asked instead."""
    ours = problem(noise_std=0.3)(DATA, NOTHING)(X, Level(0.0, 1.0), NOTHING).x0
    torch.testing.assert_close(ours, DATA.posterior(0.3).mean.expand(4, -1), rtol=0, atol=0.02)
    assert torch.equal(problem()(DATA, NOTHING)(X, Level(1.0, 0.0), NOTHING).x0, DATA(X, Level(1.0, 0.0)).x0)


@pytest.mark.parametrize("noise_std", [0.3, 2.0])
def test_the_walk_samples_the_posterior(noise_std: float) -> None:
    """The ODE's map is affine, so the mean and four steps from it tell all of it without chance."""
    process, exact = EDM(), DATA.posterior(noise_std)
    starts = exact.mean + torch.cat((torch.zeros(1, 4), torch.eye(4))).double()
    reverse = ReverseProcess(problem(noise_std=noise_std)(DATA, NOTHING), process)
    ends = sample(Heun(), reverse, starts, Karras()(process, 300))
    factor = (ends[1:] - ends[0]).T
    covariance = factor @ exact.of_x(Level(1.0, 80.0)) @ factor.T
    torch.testing.assert_close(ends[0], exact.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance, exact.covariance, rtol=0, atol=5e-4)
    assert (exact.covariance - DATA.covariance).abs().max() > 0.1


def test_many_seeds_sample_the_posterior() -> None:
    process, count = VP(), 3000
    reverse = ReverseProcess(problem(noise_std=0.3)(DATA, NOTHING), process, source=Noise(range(count)))
    x = reverse.prior((count, 4)).double()
    ends = sample(Ancestral(), reverse, x, Karras()(process, 150))
    exact = DATA.posterior(0.3)
    std = exact.covariance.diagonal().sqrt()
    assert ((ends.mean(0) - exact.mean).abs() / std).max() < 4 / math.sqrt(count) + 0.01
    assert (ends.std(0) / std - 1).abs().max() < 0.06


def gradient(level: Level[float], data: Correlated) -> Tensor:
    """∇_x |y - A x0| by hand: -Jᵀ Aᵀ r / |r|, J = alpha V / sigma²."""
    residual = Y - measure(data(X, level).x0)
    jacobian = level.alpha / level.sigma**2 * data.given_x(level)
    return -(residual @ A @ jacobian) / residual.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_dps(noise_std: float, level: Level[float]) -> None:
    """The shift is -(sigma² / alpha) scale sqrt(m / (v + noise²)) ∇|r|."""
    ours = problem("dps", scale=0.7, noise_std=noise_std)(DATA, NOTHING)(X, level, NOTHING).x0
    white = level.sigma**2 / (level.alpha**2 + level.sigma**2)
    force = 0.7 * math.sqrt(2 / (white + noise_std**2)) * gradient(level, DATA)
    torch.testing.assert_close(ours, DATA(X, level).x0 - level.sigma**2 / level.alpha * force)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_dps_as_published_moves_x_after_the_step(variance: Any) -> None:
    """One step of DDPM with our estimate is a plain step and then -ζ ∇|r|, ζ as the docstring says."""
    process, t, s = VP(), 0.5, 0.499
    here, there = process(t), process(s)
    guided, plain = (
        Ancestral(variance).step(ReverseProcess(d, process, source=Noise(range(4))), X, t, s, None)[0]
        for d in (problem("dps")(DATA, NOTHING), DATA)
    )
    beta = 1 - (here.alpha / there.alpha) ** 2
    zeta = math.sqrt(2) / here.sigma * beta * there.alpha / here.alpha
    torch.testing.assert_close(guided - plain, -zeta * gradient(here, DATA), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["dps", "pigdm", "moments"])
def test_nothing_is_shifted_where_the_estimate_agrees(method: str) -> None:
    x0 = DATA(X, LEVELS[0]).x0
    ours = InverseProblem(measure, measure(x0), method)(DATA, NOTHING)(X, LEVELS[0], NOTHING).x0  # type: ignore[arg-type]
    assert torch.equal(ours, x0)


def test_no_scale_no_change() -> None:
    assert problem(scale=0.0)(DATA, NOTHING) is DATA


@pytest.mark.parametrize("method", ["pigdm", "moments"])
def test_an_operator_that_is_not_linear_is_linearised(method: str) -> None:
    """One number: the extended Kalman update by the slope of A at the estimate."""
    data, level = GaussianMixture.gaussian(0.5, 1.0), Level(0.8, 0.6)
    x, y = torch.tensor([[1.3], [-0.2]]).double(), torch.tensor([[0.9]]).double()
    ours = InverseProblem(torch.sin, y, method, noise_std=0.2)(data, NOTHING)(x, level, NOTHING).x0  # type: ignore[arg-type]
    x0, spread = data(x, level).x0, 0.36
    slope = x0.cos()
    exact = x0 + spread * slope * (y - x0.sin()) / (0.04 + slope**2 * spread)
    torch.testing.assert_close(ours, exact)


PICTURE = Noise(range(2)).randn((2, 3, 4, 6), "picture").double()


def white_pictures(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
    """Data N(0, I)."""
    return Denoised(level.alpha / (level.alpha**2 + level.sigma**2) * x)


@pytest.mark.parametrize("method", ["pigdm", "moments"])
@pytest.mark.parametrize("operator", [Mask((0.0, 0.0, 1.0, 0.5)), Downsample(2), Grey()], ids=str)
def test_pictures(operator: Any, method: Any) -> None:
    """These have A Aᵀ = c on what they measure: x0 + v Aᵀ r / (noise² + c v), Aᵀ written out."""
    level, y = Level(0.8, 0.6), operator(PICTURE.flip(0))
    ours = InverseProblem(operator, y, method, noise_std=0.5)(white_pictures, NOTHING)(
        PICTURE, level, NOTHING
    ).x0
    x0 = white_pictures(PICTURE, level, NOTHING).x0
    residual, weights = y - operator(x0), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    back, power = {
        Mask: (residual, 1.0),
        Downsample: (residual.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4, 1 / 4),
        Grey: (residual * weights[:, None, None], (weights**2).sum().item()),
    }[type(operator)]
    torch.testing.assert_close(ours, x0 + 0.36 * back / (0.25 + power * 0.36), rtol=1e-9, atol=1e-9)


def test_masks() -> None:
    ones = torch.ones(1, 1, 4, 6)
    assert Mask((0.0, 0.5, 0.5, 1.0))(ones)[0, 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[0] * 6] * 2
    keep = (torch.arange(24).view(4, 6) % 3 == 0).float()
    assert torch.equal(Mask(keep)(PICTURE), PICTURE * keep)


def test_downsampling_is_the_mean_of_squares() -> None:
    small = Downsample(2)(PICTURE)
    torch.testing.assert_close(small[1, 2, 1, 2], PICTURE[1, 2, 2:4, 4:6].mean())
    assert small.shape == (2, 3, 2, 3)


def test_blur() -> None:
    """A flat picture stays flat to its borders; a point becomes a Gaussian; both axes are the same."""
    torch.testing.assert_close(Blur(1.5)(torch.ones(1, 1, 9, 31)), torch.ones(1, 1, 9, 31))
    point = torch.zeros(1, 1, 31, 31).double()
    point[0, 0, 15, 15] = 1
    seen = Blur(1.5)(point)[0, 0]
    torch.testing.assert_close((seen[15, 15:20] / seen[15, 15]).log(), -(torch.arange(5).double() ** 2) / 4.5)
    torch.testing.assert_close(seen, seen.T)
    assert seen.sum().item() == pytest.approx(1, abs=1e-6)


def test_blurred_pictures_are_restored() -> None:
    """No closed form by hand: the dense matrix of the blur gives it."""
    operator, level, shape = Blur(0.8), Level(0.8, 0.6), (2, 1, 4, 5)
    x = PICTURE[:, :1, :, :5]
    matrix = operator(torch.eye(20).double().view(20, 1, 4, 5)).flatten(1).T
    y = operator(x.flip(0))
    ours = InverseProblem(operator, y, "pigdm", noise_std=0.1, iterations=20)(white_pictures, NOTHING)
    x0 = white_pictures(x, level, NOTHING).x0.flatten(1)
    gain = 0.36 * matrix.T @ torch.linalg.inv(0.01 * torch.eye(20).double() + 0.36 * matrix @ matrix.T)
    exact = x0 + (y.flatten(1) - x0 @ matrix.T) @ gain.T
    torch.testing.assert_close(ours(x, level, NOTHING).x0, exact.view(shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["dps", "pigdm", "moments"])
def test_a_row_does_not_see_the_others(method: Any) -> None:
    guided = problem(method, noise_std=0.3)(DATA, NOTHING)
    together = guided(X, LEVELS[0], NOTHING).x0
    for row in range(4):
        alone = guided(X[row : row + 1], LEVELS[0], NOTHING).x0
        torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)


def test_every_sample_may_have_a_measurement_of_its_own() -> None:
    measurements = torch.cat((Y, -Y, 2 * Y, 0 * Y))
    together = InverseProblem(measure, measurements, "moments", noise_std=0.3)(DATA, NOTHING)
    for row in range(4):
        alone = InverseProblem(measure, measurements[row : row + 1], "moments", noise_std=0.3)(DATA, NOTHING)
        ours, one = together(X, LEVELS[0], NOTHING).x0[row], alone(X[row : row + 1], LEVELS[0], NOTHING).x0[0]
        torch.testing.assert_close(ours, one, rtol=1e-12, atol=1e-12)
    twice = together(torch.cat((X, X)), LEVELS[0], NOTHING).x0
    torch.testing.assert_close(twice[4:], together(X, LEVELS[0], NOTHING).x0, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def model() -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ADM(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, classes=4, tokens=5)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return NetworkDenoiser(network.eval(), VP(), Velocity())


def conditions() -> tuple[Condition, Condition]:
    noise = Noise(range(2))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    given = Condition(vector=torch.eye(4)[:2], tokens=noise.randn((2, 3, 5), "tokens"), mask=mask)
    return given, Condition(vector=torch.zeros(2, 4), tokens=torch.zeros(2, 3, 5), mask=mask)


@pytest.mark.parametrize("method", ["dps", "moments"])
@pytest.mark.parametrize("order", ["around", "inside"])
def test_inference_mode(model: NetworkDenoiser, order: str, method: Any) -> None:
    """Conditions made there cannot be differentiated through as they are; in either order of guidances."""

    def estimate() -> Tensor:
        given, null = conditions()
        x = Noise(range(2)).randn((2, 3, 8, 8), "x")
        parts: list[Any] = [InverseProblem(Downsample(2), Downsample(2)(x[:1]), method), ClassifierFree(2.0)]
        inner, outer = parts if order == "inside" else parts[::-1]
        return outer(inner(model, null), null)(x, Level(0.7, 0.7), given).x0

    outside = estimate()
    with torch.inference_mode():
        inside = estimate()
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(inside, outside.detach())
    assert not inside.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_variance_of_learned_range_models_is_kept() -> None:
    def learned(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Denoised(DATA(x, level).x0, x + 1)

    assert torch.equal(problem()(learned, NOTHING)(X, LEVELS[0], NOTHING).variance, X + 1)  # type: ignore[arg-type]


def test_conjugate_gradients() -> None:
    """Rows are systems of their own; one whose matrix is not positive stays, one solved stays finite."""
    matrices = torch.stack((DATA.covariance, -DATA.covariance, torch.eye(4).double(), 1e3 * DATA.covariance))
    b = torch.cat((X[:3], X[:1]))
    u = conjugate_gradients(lambda d: (matrices @ d[..., None])[..., 0], b, 30)
    torch.testing.assert_close(u[0], torch.linalg.solve(matrices[0], b[0]), rtol=1e-8, atol=1e-8)
    assert torch.equal(u[1], torch.zeros(4).double())
    assert torch.equal(u[2], b[2])
    torch.testing.assert_close(u[3], u[0] / 1e3, rtol=1e-8, atol=1e-8)
    assert torch.equal(conjugate_gradients(lambda d: d, 0 * b, 3), 0 * b)


@pytest.mark.parametrize(
    "operator, described",
    [
        (Mask((0.0, 0.0, 1.0, 0.5)), {"keep": [0.0, 0.0, 1.0, 0.5]}),
        (Downsample(4), {"factor": 4}),
        (Blur(2.0), {"sigma": 2.0}),
        (Grey(), {}),
        (Grey((0.2, 0.7, 0.1)), {"weights": [0.2, 0.7, 0.1]}),
    ],
    ids=str,
)
def test_operators_are_plain_data(operator: Any, described: Any) -> None:
    guidance = InverseProblem(operator, method="pigdm", noise_std=0.1)
    settings = describe(guidance)
    assert settings == {"name": "inverse_problem", "operator": described, "method": "pigdm", "noise_std": 0.1}
    assert build("guidance", json.loads(json.dumps(settings))) == guidance


def test_generating_with_a_measurement(tiny: Model) -> None:
    """Batches do not matter; a recipe says what plain data can, and that the rest is not recorded."""
    operator = Downsample(4)
    y = operator(Noise([3]).randn((1, 3, 16, 16), "y").clamp(-1, 1))
    inner = InverseProblem(operator, y, "pigdm", noise_std=0.1)
    made = generate(tiny, count=3, seed=5, guidance=Interval(0.01, 50.0, inner), concept="cat")
    plain = generate(tiny, count=3, seed=5, guidance=[], concept="cat")
    near, far = ((operator(images.tensor) - y).square().mean() for images in (made, plain))
    assert near < 0.7 * far
    settings = {"name": "inverse_problem", "operator": {"factor": 4}, "method": "pigdm", "noise_std": 0.1}
    assert made.recipe["guidance"] == [{"name": "interval", "low": 0.01, "high": 50.0, "guidance": settings}]
    assert made.recipe["unrecorded"] == ["guidance.measurement"]
    alone = generate(tiny, count=3, seed=5, guidance=Interval(0.01, 50.0, inner), concept="cat", batch=1)
    torch.testing.assert_close(made.tensor, alone.tensor, rtol=0, atol=1e-4)


def test_functions_and_masks_are_not_recorded_either(tiny: Model) -> None:
    for operator in (torch.tanh, Mask(torch.ones(16, 16))):
        guidance = InverseProblem(operator, torch.zeros(1, 3, 16, 16))
        made = generate(tiny, seed=5, guidance=guidance, concept="cat", steps=2)
        assert made.recipe["guidance"] == [{"name": "inverse_problem"}]
        assert made.recipe["unrecorded"] == ["guidance.measurement", "guidance.operator"]


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: InverseProblem()(DATA, NOTHING), "operator: no operator is given"),
        (lambda: InverseProblem(measure)(DATA, NOTHING), "measurement: no measurement is given"),
        (
            lambda: InverseProblem(measure, Y[:, :1])(DATA, NOTHING)(X, LEVELS[0], NOTHING),
            r"\(1, 1\) where .*\(4, 2\)",
        ),
        (
            lambda: InverseProblem(measure, torch.cat((Y,) * 3))(DATA, NOTHING)(X, LEVELS[0], NOTHING),
            "measurement",
        ),
        (lambda: InverseProblem(3), "int is no operator"),  # type: ignore[arg-type]
        (lambda: InverseProblem(measure, [1.0]), "list is no tensor"),  # type: ignore[arg-type]
        (lambda: InverseProblem(method="newton"), "'newton'"),  # type: ignore[arg-type]
        (lambda: InverseProblem(noise_std=-1.0), "noise_std"),
        (lambda: InverseProblem(iterations=0), "iterations"),
        (lambda: Mask((0.0, 0.5, 1.0, 0.5)), "keeps nothing"),
        (lambda: Mask((0.0, 0.5, 1.0, 50.0)), "each 0 to 1"),
        (lambda: Downsample(0), "at least 1"),
        (lambda: Downsample(4)(PICTURE), "6 x 4 does not divide by 4"),
        (lambda: Blur(0.0), "above 0"),
        (lambda: Blur(1.0)(X), r"pictures are \(B, C, H, W\)"),
        (lambda: Grey()(PICTURE[:, :2]), "2 channels"),
    ],
)
def test_mistakes_are_named(make: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        make()
