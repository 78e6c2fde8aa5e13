"""The variational bounds against the sums and integrals they are: the chain's, and the continuous one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sfumato.core.bound import density_bound, likelihood_weight, prior_bound
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.dequantize import to_levels
from sfumato.core.errors import InvalidInput
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.data.picture import to_image
from sfumato.metrics.bound import chain_bound
from sfumato.processes.betas import Betas
from sfumato.processes.cosine import Cosine
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.sub_vp import SubVP
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.training.levels.likelihood import by_log_snr

E_DRAWS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)


class Corners(Noise):
    """±1 for normal numbers: with data m ± s all four corners average every product of two exactly."""

    def randn(self, shape: Any, purpose: str, moment: float = 0.0) -> torch.Tensor:
        return E_DRAWS[:, 1].view(4, 1).expand(4, math.prod(shape[1:])).view(tuple(shape))


@pytest.mark.parametrize("power, steps, prior", [(0.25, 6.3024369, 7.28e-6), (1.0, 7.3145249, 2.91e-5)])
def test_the_bound_of_the_sheet(power: float, steps: float, prior: float) -> None:
    """Linear betas, T = 1000: the sum over t >= 1 and the prior's KL in bits, with the exact denoiser."""
    std = math.sqrt(power)
    reverse = ReverseProcess(GaussianMixture.gaussian(0.0, std), Betas(), source=Corners(range(4)))
    x0 = std * E_DRAWS[:, :1]
    found = chain_bound(reverse, x0, clip=False)
    assert found.steps.mean().item() == pytest.approx(steps, abs=1e-6)
    assert found.prior.mean().item() == pytest.approx(prior, rel=2e-3)
    assert found.evaluations == 1000
    assert torch.allclose(found.total, found.prior + found.steps + found.decoder)
    # Above its continuous-time limit between the same levels, and nearer with more steps.
    first, last = Betas()(1e-3).ratio ** -2, Betas()(1.0).ratio ** -2
    limit = math.log2((1 + power * first) / (1 + power * last)) / 2
    assert limit == pytest.approx({0.25: 5.6440653, 1.0: 6.6438271}[power], abs=1e-6)
    assert steps > limit


def test_more_steps_make_a_tighter_bound() -> None:
    """Continuous betas cut ever finer between the same ends: down to the limit, never below."""
    data, power = GaussianMixture.gaussian(0.0, 0.5), 0.25
    gaps = []
    for steps in (50, 100, 200):

        class Cut(VP):
            pass

        process = Cut()
        Cut.steps = steps
        reverse = ReverseProcess(data, process, source=Corners(range(4)))
        found = chain_bound(reverse, 0.5 * E_DRAWS[:, :1], clip=False)
        ends = [process(t).ratio ** -2 for t in (1 / steps, 1.0)]
        limit = math.log2((1 + power * ends[0]) / (1 + power * ends[1])) / 2
        gaps.append(found.steps.mean().item() - limit)
    assert gaps[0] > gaps[1] > gaps[2] > 0


@pytest.mark.parametrize(
    "process", [VP(), SubVP(), VE(), Cosine(), Flow(), EDM(), Betas(steps=40)], ids=lambda p: type(p).__name__
)
def test_the_bound_is_a_sum_over_snr_on_every_process(process: Process) -> None:
    """Small variances: Σ ½ (SNR_{k-1} - SNR_k) s²σ²/(α²s²+σ²), also where alpha ends at 0."""
    cut = process if process.steps == 40 else type("Cut", (type(process),), {"steps": 40})()
    reverse = ReverseProcess(GaussianMixture.gaussian(0.0, 0.5), cut, source=Corners(range(4)))
    found = chain_bound(reverse, 0.5 * E_DRAWS[:, :1], clip=False, variance="small")
    t = torch.arange(1, 41, dtype=torch.float64) / 40
    level = process(t)
    snr = (level.alpha / level.sigma) ** 2
    error = 0.25 * level.sigma**2 / (0.25 * level.alpha**2 + level.sigma**2)
    closed = ((snr[:-1] - snr[1:]) * error[1:]).sum().item() / 2 / math.log(2)
    assert found.steps.mean().item() == pytest.approx(closed, rel=1e-6)


def test_fewer_terms_estimate_the_same_sum() -> None:
    data = GaussianMixture.gaussian(0.0, 0.5)
    x0 = to_image(to_levels((2 * data.sample(Noise([4])) * 127.5).round() / 127.5 / 2 + 0.5 / 127.5))
    x0 = x0.double().expand(3000, -1)
    process = Betas(steps=200)
    reverse = ReverseProcess(data, process, source=Noise(range(3000)))
    full, part = chain_bound(reverse, x0), chain_bound(reverse, x0, terms=20)
    assert part.evaluations == 21
    error = math.hypot(full.steps.std().item(), part.steps.std().item()) / math.sqrt(3000)
    assert abs(full.steps.mean() - part.steps.mean()) < 4 * error
    assert torch.equal(full.decoder, part.decoder)
    assert torch.equal(full.prior, part.prior)


def test_learned_ranges_at_their_ends_are_small_and_large() -> None:
    data = GaussianMixture.gaussian(0.1, 0.4)
    x0 = to_image(torch.tensor([[100.0], [150.0]])).double()
    process = Betas(steps=50)

    def said(value: float) -> Any:
        return lambda x, level, condition: Denoised(data(x, level).x0, torch.full_like(x, value))

    def total(denoiser: Any, **options: Any) -> torch.Tensor:
        return chain_bound(ReverseProcess(denoiser, process, source=Noise([0, 1])), x0, **options).total

    assert torch.allclose(total(said(0.0)), total(data, variance="small"))
    assert torch.allclose(total(said(1.0)), total(data, variance="large"))
    assert torch.allclose(total(said(1.0), variance="small"), total(data))
    assert not torch.allclose(total(said(0.5)), total(said(1.0)))
    with pytest.raises(InvalidInput, match="says no variance"):
        total(data, variance="learned")
    with pytest.raises(InvalidInput, match="too few"):
        total(data, terms=0)


@pytest.mark.parametrize("process", [VP(), VE(), Flow(), Betas()], ids=lambda p: type(p).__name__)
def test_the_prior_bound_is_the_kl_of_two_gaussians(process: Process) -> None:
    x0 = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    for t in (0.4, 1.0):
        level = process(t)
        scale = process.prior_std * level.norm / process(1.0).norm
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(level.alpha * x0, torch.tensor(level.sigma).double()),
            torch.distributions.Normal(torch.zeros_like(x0), torch.tensor(scale).double()),
        )
        assert prior_bound(process, x0, t).item() == pytest.approx(kl.mean().item() / math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    "process", [VP(), SubVP(), VE(), Flow(), Cosine(), EDM()], ids=lambda p: type(p).__name__
)
def test_the_likelihood_weight_is_half_the_fall_of_snr(process: Process) -> None:
    t = torch.linspace(max(process.t_min, 0.01), 0.98, 30, dtype=torch.float64)
    step = 1e-6
    fall = (process(t - step).ratio ** -2 - process(t + step).ratio ** -2) / (4 * step)
    assert torch.allclose(likelihood_weight(process, t), fall, rtol=1e-5)
    # g² on the squared error of the score, which is alpha² / sigma⁴ times that of x0.
    level = process(t)
    song = process.diffusion(t) ** 2 * level.alpha**2 / level.sigma**4 / 2
    assert torch.allclose(likelihood_weight(process, t), song, rtol=1e-9)


NARROW = GaussianMixture(
    torch.tensor([[-0.301], [0.2043]], dtype=torch.float64),
    torch.tensor([0.004, 0.003], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64),
)
"""Two peaks of one pixel, each about as wide as a bin of 1/128."""


@pytest.mark.parametrize(
    "data, process",
    [
        (GaussianMixture.gaussian(0.0, 0.5), VP()),
        (GaussianMixture.gaussian(0.0, 0.5), Flow()),
        (NARROW, VE(sigma_min=5e-5, sigma_max=10.0)),
    ],
    ids=["vp", "flow", "ve"],
)
def test_the_continuous_bound_is_tight_for_the_exact_denoiser(data: Any, process: Process) -> None:
    """The walk back with exact scores is the law itself: the mean over levels and noise is -log p(x0)."""
    x0 = data.means[-1] + data.stds[-1] * torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    eps, mass = gauss_hermite(24)
    count = 240
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = by_log_snr(process, u, torch.full((count,), process.t_min, dtype=torch.float64))
    rows = [part.flatten() for part in torch.meshgrid(x0, count * u, eps, indexing="ij")]
    which = rows[1].long()
    t, weight = levels.t[which], levels.weight[which]
    bits = density_bound(data, process, rows[0][:, None], Condition(), t, weight, rows[2][:, None])
    mean = (bits.view(3, count, -1).mean(1) * mass).sum(1)
    assert torch.allclose(mean, -data.log_prob(x0[:, None]) / math.log(2), rtol=0, atol=3e-3)


def gauss_hermite(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and shares of a normal number."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
