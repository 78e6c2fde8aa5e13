"""The oracle itself: score is the gradient of the likelihood, the denoiser is Tweedie's formula."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise


def mixture(dim: int) -> GaussianMixture:
    means = torch.tensor([[-1.0], [0.2], [1.5]], dtype=torch.float64).expand(3, dim)
    means = means + 0.3 * torch.arange(dim, dtype=torch.float64)
    stds = torch.tensor([0.3, 0.5, 0.1], dtype=torch.float64)
    return GaussianMixture(means, stds, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))


LEVELS = [Level(1.0, 0.0), Level(0.9, 0.3), Level(0.1, 0.995), Level(1.0, 7.0), Level(0.0, 1.0)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dim", [1, 3])
def test_score_is_the_gradient(level: Level[float], dim: int) -> None:
    data = mixture(dim)
    x = 2 * Noise(range(20)).randn((20, dim), "x").double()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(x, level).sum(), x)
    torch.testing.assert_close(data.score(x.detach(), level), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS[1:4])
def test_the_denoiser_is_tweedie(level: Level[float]) -> None:
    """alpha E[x0 | x] = x + sigma² score."""
    data = mixture(2)
    x = 2 * Noise(range(20)).randn((20, 2), "x").double()
    tweedie = (x + level.sigma**2 * data.score(x, level)) / level.alpha
    torch.testing.assert_close(data(x, level).x0, tweedie, rtol=1e-10, atol=1e-10)


def test_the_denoiser_is_the_posterior_mean() -> None:
    """By numerical integration of x0 p(x0) p(x | x0), which knows nothing of the formula."""
    data, level, x = mixture(1), Level(0.8, 0.6), 0.7

    def joint(x0: float) -> float:
        prior = math.exp(data.log_prob(torch.tensor([[x0]], dtype=torch.float64)).item())
        return prior * float(stats.norm.pdf(x, level.alpha * x0, level.sigma))

    mass = integrate.quad(joint, -6, 6, limit=200)[0]
    mean = integrate.quad(lambda v: v * joint(v), -6, 6, limit=200)[0] / mass
    assert data(torch.tensor([[x]], dtype=torch.float64), level).x0.item() == pytest.approx(mean, abs=1e-8)


def test_the_likelihood_is_a_density() -> None:
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for level in LEVELS[:3]:
        mass = torch.trapezoid(mixture(1).log_prob(grid[:, None], level).exp(), grid)
        assert float(mass) == pytest.approx(1, abs=1e-9)


def test_one_gaussian_is_the_closed_form() -> None:
    """Sheet 10 §2: D = (s² x + ς² m) / (s² + ς²) in x/alpha and sigma/alpha."""
    data, ratio = GaussianMixture.gaussian(0.7, 0.5), 2.0
    y = torch.tensor([[1.3], [-4.0]], dtype=torch.float64)
    expected = (0.25 * y + ratio**2 * 0.7) / (0.25 + ratio**2)
    torch.testing.assert_close(data(y, Level(1.0, ratio)).x0, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(data(0.3 * y, Level(0.3, 0.6)).x0, expected, rtol=1e-14, atol=0)


def test_float_levels_keep_their_digits() -> None:
    """A float level read as float32 would lose 8 digits and every measured order with them."""
    data, x = mixture(1), torch.tensor([[0.3]], dtype=torch.float64)
    by_tensor = Level(torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64))
    assert data(x, Level(0.7, 0.1)).x0.item() == pytest.approx(data(x, by_tensor).x0.item(), rel=1e-15)


def test_rows_may_have_levels_of_their_own() -> None:
    data, x = mixture(2), torch.tensor([[0.3, 1.0], [2.0, -1.0]], dtype=torch.float64)
    alpha = torch.tensor([[0.9], [0.2]], dtype=torch.float64)
    both = data(x, Level(alpha, 1 - alpha)).x0
    for row in range(2):
        level = Level(alpha[row].item(), 1 - alpha[row].item())
        torch.testing.assert_close(both[row : row + 1], data(x[row : row + 1], level).x0, rtol=0, atol=1e-14)


def test_samples_have_the_law() -> None:
    data = mixture(1)
    x = data.sample(Noise(range(40_000)))[:, 0]

    def cdf(v: float) -> float:
        parts = zip(data.weights.tolist(), data.means[:, 0].tolist(), data.stds.tolist(), strict=True)
        return sum(w * stats.norm.cdf(v, m, s) for w, m, s in parts)

    assert stats.kstest(x.numpy(), cdf).pvalue > 1e-3
