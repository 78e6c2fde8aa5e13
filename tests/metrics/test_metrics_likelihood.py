"""Likelihood against closed forms: Gaussians, mixtures, uniform noise, and the bounds' own sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.conditioners.nothing import Nothing
from sfumato.core.bound import density_bound, likelihood_weight, prior_bound
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.dequantize import Uniform, Variational, bits_of_bytes, to_levels
from sfumato.core.errors import InvalidInput, MissingExtra, NotFinite, NotFound
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import Data
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.data.item import Batch
from sfumato.data.picture import to_image
from sfumato.metrics import likelihood as module
from sfumato.metrics.bound import bound, chain_bound
from sfumato.metrics.evaluate import ask, model_names
from sfumato.metrics.likelihood import FlowLikelihood, likelihood
from sfumato.model import Model
from sfumato.processes.betas import Betas
from sfumato.processes.cosine import Cosine
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.sub_vp import SubVP
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.spaces.pixel import Pixel
from sfumato.training.levels.likelihood import by_log_snr

FINE = FlowLikelihood(rtol=1e-9, atol=1e-9)
MIXTURE = GaussianMixture(
    torch.tensor([[-0.5, 0.3, 0.1], [0.4, -0.2, 0.6]], dtype=torch.float64),
    torch.tensor([0.2, 0.4], dtype=torch.float64),
    torch.tensor([0.3, 0.7], dtype=torch.float64),
)


def normal(x: torch.Tensor, std: float) -> torch.Tensor:
    """log N(x; 0, std² I), (B,)."""
    return (-((x / std) ** 2) / 2 - math.log(std) - math.log(2 * math.pi) / 2).sum(1)


def expected(data: GaussianMixture, process: Process, x: torch.Tensor, latent: torch.Tensor, t: float) -> Any:
    """The density of data noised to t, in data's own scale, plus the prior mismatch of sheet 10 §4."""
    here, there = process(t), process(1.0)
    exact = data.log_prob(here.alpha * x, here) + x.shape[1] * math.log(here.alpha)
    return exact + normal(latent, process.prior_std) - data.log_prob(latent, there)


@dataclass(frozen=True)
class UniformData:
    """Pixels uniform on [-1, 1], each by itself: posterior means of a Gaussian cut off at both ends."""

    def __call__(self, x: torch.Tensor, level: Level[Any], condition: Condition | None = None) -> Denoised:
        alpha, sigma = (torch.as_tensor(part, dtype=torch.float64) for part in level)
        wide = x.double()
        # Cut-off formula where the noise is small, the tilt of a flat law by quadrature where it is not.
        ratio = sigma / alpha.clamp_min(1e-12)
        centre = wide / alpha.clamp_min(1e-12)
        low, high = (-1 - centre) / ratio, (1 - centre) / ratio
        flip = low + high > 0  # to the left tail, where differences of the distribution keep their digits
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        log_mass = torch.special.log_ndtr(high) + torch.log1p(
            -torch.exp(torch.special.log_ndtr(low) - torch.special.log_ndtr(high))
        )
        slope = torch.exp(-(low**2) / 2 - log_mass) - torch.exp(-(high**2) / 2 - log_mass)
        cut = centre + torch.where(flip, -1.0, 1.0) * ratio * slope / math.sqrt(2 * math.pi)
        nodes, weights = gauss_legendre(48)
        power = nodes * (alpha * wide / sigma**2)[..., None] - nodes**2 * (alpha / sigma)[..., None] ** 2 / 2
        mass = torch.softmax(power + weights.log(), -1)
        return Denoised(torch.where(ratio < 0.5, cut, (mass * nodes).sum(-1)).to(x))

    def log_prob(self, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """log p(x_t), summed over pixels, (B,)."""
        edge = lambda side: torch.special.ndtr((side - x / level.alpha) * level.alpha / level.sigma)  # noqa: E731
        return torch.log((edge(1) - edge(-1)) / (2 * level.alpha)).flatten(1).sum(1)


def gauss_legendre(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


class Oracle(NetworkDenoiser):
    """A closed form in a model's place; its one weight says where it lives."""

    def __init__(self, closed: Any, process: Process) -> None:
        super().__init__(nn.Linear(1, 1), process, Data())
        self.closed = closed

    def forward(self, x: torch.Tensor, level: Level[Any], condition: Condition) -> Denoised:
        if isinstance(self.closed, GaussianMixture):
            flat = Level(*(part.view(-1) if isinstance(part, torch.Tensor) else part for part in level))
            return Denoised(self.closed(x.flatten(1), flat).x0.view(x.shape))
        return self.closed(x, level, condition)


def model_of(closed: Any, process: Process, channels: int = 1) -> Model:
    return Model(Oracle(closed, process), Nothing(), Pixel(channels, multiple=1))


def bytes_batch(count: int, shape: tuple[int, ...], seed: int = 0) -> Batch:
    levels = (Noise(range(seed, seed + count)).uniform((count, *shape), "byte") * 256).floor()
    return Batch(to_image(levels), {})


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_the_numbers_of_the_sheet(divergence: Any) -> None:
    """VP, N(.7, .25), from t = 1e-5: -.225820, -1.199344, -5.989973 (there of x_t, here of x_t / alpha)."""
    x = torch.tensor([[0.7], [0.0], [-1.0]], dtype=torch.float64)
    reverse = ReverseProcess(GaussianMixture.gaussian(0.7, 0.5), VP(), source=Noise(range(3)))
    nats = FlowLikelihood(divergence=divergence, rtol=1e-9, atol=1e-9)(reverse, x).nats
    assert nats.tolist() == pytest.approx([-0.225820, -1.199344, -5.989973], abs=4e-6)


@pytest.mark.parametrize(
    "process", [VP(), SubVP(), VE(), Cosine(), Flow(), EDM(), Betas()], ids=lambda p: type(p).__name__
)
def test_gaussian_data_have_their_likelihood_on_every_process(process: Process) -> None:
    data = GaussianMixture.gaussian(0.7, 0.5, dim=3)
    x = data.sample(Noise(range(6))) * 1.5
    found = FINE(ReverseProcess(data, process, source=Noise(range(6))), x)
    assert torch.allclose(found.nats, expected(data, process, x, found.latent, 1e-5), rtol=0, atol=1e-6)
    # The latent is where the closed-form ODE leads: m + (x - m) sqrt((s² + ς1²) / (s² + ς0²)).
    here, there = process(1e-5), process(1.0)
    std = math.sqrt((there.alpha * 0.5) ** 2 + there.sigma**2) / math.sqrt(0.25 + here.ratio**2)
    assert torch.allclose(found.latent, there.alpha * 0.7 + (x - 0.7) * std, atol=1e-6 * process.prior_std)


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=20.0), Flow()], ids=lambda p: type(p).__name__)
def test_mixtures_have_their_likelihood(process: Process) -> None:
    x = MIXTURE.sample(Noise(range(8)))
    reverse = ReverseProcess(MIXTURE, process, source=Noise(range(8)))
    found = FlowLikelihood(divergence="exact", rtol=1e-9, atol=1e-9)(reverse, x)
    exact = expected(MIXTURE, process, x, found.latent, 1e-5)
    assert torch.allclose(found.nats, exact, rtol=0, atol=1e-6)
    coarse = FlowLikelihood(divergence="exact")(reverse, x)
    assert coarse.evaluations < found.evaluations / 2
    assert 1e-9 < (coarse.nats - exact).abs().max() < 1e-3


def test_hutchinson_is_unbiased_and_probes_make_it_sharper() -> None:
    """A mixture's Jacobian is not diagonal: the mean over seeds finds the exact trace's likelihood."""
    count = 400
    x = MIXTURE.sample(Noise([3])).expand(count, -1).contiguous()
    exact = FlowLikelihood(divergence="exact")(ReverseProcess(MIXTURE, VP()), x[:1]).nats
    spreads = {}
    for probe, probes in (("rademacher", 1), ("rademacher", 8), ("gaussian", 1)):
        flow = FlowLikelihood(probe=probe, probes=probes)  # type: ignore[arg-type]
        nats = flow(ReverseProcess(MIXTURE, VP(), source=Noise(range(count))), x).nats
        spreads[probe, probes] = nats.std()
        assert abs(nats.mean() - exact) < 4 * nats.std() / math.sqrt(count) + 1e-4
    one = spreads["rademacher", 1]
    assert one > 0.05
    assert spreads["rademacher", 8] / one == pytest.approx(1 / math.sqrt(8), rel=0.15)
    assert spreads["gaussian", 1] > one


def test_sign_probes_have_no_variance_where_pixels_are_independent() -> None:
    x = 0.3 * Noise(range(4)).randn((4, 2, 3, 3), "x").double()
    oracle = Oracle(UniformData(), VP())
    exact = FlowLikelihood(divergence="exact")(ReverseProcess(oracle, VP()), x).nats
    for seed in (0, 50):
        reverse = ReverseProcess(oracle, VP(), source=Noise(range(seed, seed + 4)))
        assert torch.allclose(FlowLikelihood()(reverse, x).nats, exact, rtol=0, atol=1e-9)
        gaussian = FlowLikelihood(probe="gaussian")(reverse, x).nats
        assert (gaussian - exact).abs().min() > 1e-3


def test_a_row_is_the_same_in_any_company_within_the_tolerance() -> None:
    x = torch.cat((MIXTURE.sample(Noise(range(4))), torch.full((1, 3), 4.0, dtype=torch.float64)))
    flow = FlowLikelihood(rtol=1e-7, atol=1e-7)
    whole = flow(ReverseProcess(MIXTURE, VP(), source=Noise(range(5))), x).nats
    for row in range(5):
        alone = flow(ReverseProcess(MIXTURE, VP(), source=Noise([row])), x[row : row + 1]).nats
        assert alone.item() == pytest.approx(whole[row].item(), abs=1e-5)


@pytest.mark.parametrize(
    "process, edge",
    [(VE(sigma_min=1e-4), 3e-4), (Flow(), 1e-4), (VP(), 5e-3)],
    ids=["ve", "flow", "vp"],
)
def test_a_uniform_model_of_uniform_noise_has_eight_bits(process: Process, edge: float) -> None:
    """Density 1/2 on [-1, 1] and bins 1/128 wide: exactly 8 bits, but for the last noise at the edges."""
    model = model_of(UniformData(), process)
    flow = FlowLikelihood(rtol=1e-6, atol=1e-6)
    batches = [bytes_batch(4, (1, 6, 6)), bytes_batch(4, (1, 6, 6), seed=4)]
    found = likelihood(model, batches, flow=flow)
    levels = torch.cat([to_levels(batch.image) for batch in batches])
    x = Uniform()(levels, Noise(range(8))).x
    assert bool((x.abs() < 1).all())
    # Each row is the closed form plus its own prior mismatch.
    row = flow(ReverseProcess(model.denoiser, process, source=Noise(range(8))), x.double())
    here, there = process(1e-5), process(1.0)
    closed = UniformData().log_prob(here.alpha * x.double(), here) + 36 * math.log(here.alpha)
    if there.alpha:
        closed = closed + normal(row.latent.flatten(1), process.prior_std)
        closed = closed - UniformData().log_prob(row.latent, there)
    assert torch.allclose(row.nats, closed, rtol=0, atol=2e-4)
    assert found.value == pytest.approx(bits_of_bytes(row.nats, 36).mean().item(), abs=3e-4)
    assert found.value == pytest.approx(8, abs=edge)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.n, found.n_real, found.dimensions) == (0, 8, 36)
    assert found.evaluations == row.evaluations or abs(found.evaluations - row.evaluations) < 60


def test_bits_are_those_of_the_exact_discrete_law() -> None:
    """A narrow Gaussian pixel: uniform dequantisation gives E[-log p(x)], never below the bytes' own bits."""
    data, process = GaussianMixture.gaussian(0.2, 0.02), VE(sigma_min=1e-4, sigma_max=30.0)
    levels = ((data.sample(Noise(range(300))) + 1) * 128).floor()
    batch = Batch(to_image(levels).view(-1, 1, 1, 1).float(), {})
    found = likelihood(model_of(data, process), [batch])
    edges = torch.distributions.Normal(torch.tensor(0.2).double(), torch.tensor(0.02).double())
    mass = edges.cdf((levels + 1) / 128 - 1) - edges.cdf(levels / 128 - 1)
    best = -mass.log2().mean().item()
    x = Uniform()(levels, Noise(range(300))).x
    direct = (7 - data.log_prob(x) / math.log(2)).mean().item()
    x4 = Uniform()(levels.view(-1, 1, 1, 1).float(), Noise(range(300))).x.view(-1, 1).double()
    assert torch.allclose(x, x4, atol=1e-6)
    assert found.value == pytest.approx(direct, abs=1e-3)
    assert found.value > best


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


@pytest.mark.parametrize("process", [VP(), VE(), Flow(), Cosine(), EDM()], ids=lambda p: type(p).__name__)
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
    rows = [part.flatten() for part in torch.meshgrid(x0, torch.arange(count), eps, indexing="ij")]
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


def test_dequantisation_stays_in_its_bins_and_starts_uniform() -> None:
    levels = (Noise(range(50)).uniform((50, 2, 4, 4), "bytes") * 256).floor().float()
    plain = Uniform()(levels, Noise(range(50)))
    fresh = Variational(channels=2, width=8)(levels, Noise(range(50)))
    assert torch.allclose(plain.x, fresh.x, atol=1e-6)
    assert torch.allclose(fresh.log_q, torch.zeros(50), atol=1e-5)
    assert torch.equal(((plain.x + 1) * 128).floor(), levels)
    alone = Uniform()(levels[7:8], Noise([7]))
    assert torch.equal(alone.x[0], plain.x[7])
    with pytest.raises(InvalidInput, match="channels"):
        Variational(channels=3)(levels, Noise(range(50)))


def test_the_learned_density_is_one() -> None:
    """log q is the density of the u drawn: E[1 / q] over draws is the length of the interval."""
    torch.manual_seed(0)
    learned = Variational(channels=1, width=8).double()
    with torch.no_grad():
        learned.network[-1].bias.copy_(torch.tensor([0.4, -0.3]))
    count = 40_000
    made = learned(torch.full((count, 1, 1, 1), 77.0, dtype=torch.float64), Noise(torch.arange(count)))
    assert made.log_q.neg().exp().mean().item() == pytest.approx(1, abs=0.02)
    u = ((made.x + 1) * 128 - 77).flatten()
    inside = (u > 0.3) & (u < 0.5)
    edges = torch.logit(torch.tensor([0.3, 0.5], dtype=torch.float64))
    mass = torch.sigmoid((edges - 0.4) * math.exp(0.3)).diff().item()
    assert inside.double().mean().item() == pytest.approx(mass, abs=0.01)
    assert (made.log_q[inside].neg().exp().mean() * mass).item() == pytest.approx(0.2, abs=0.005)


def test_the_metrics_of_a_model_are_asked_by_name() -> None:
    assert model_names() == ["bound", "likelihood"]
    model = model_of(GaussianMixture.gaussian(0.0, 0.5, dim=4), Betas(steps=20))
    data = lambda: [bytes_batch(5, (1, 2, 2))]  # noqa: E731
    said = ask(model, data, ["bound", "likelihood"], seed=3, options={"bound": {"terms": None}})
    assert [each.label for each in said] == ["bound[bits/dim]", "likelihood[bits/dim]"]
    assert said[0] == bound(model, data(), seed=3, terms=None)
    assert said[1] == likelihood(model, data(), seed=3)
    assert said[0] != bound(model, data(), seed=4, terms=None)
    assert "5 real" in str(said[0])
    assert "20 evaluations a picture" in str(said[0])
    with pytest.raises(InvalidInput, match=r"bound has no option 'term'.*terms"):
        ask(model, data, ["bound"], options={"bound": {"term": 3}})
    with pytest.raises(NotFound, match="did you mean likelihood"):
        ask(model, data, ["likelyhood"])


def test_mistakes_are_named() -> None:
    model = model_of(GaussianMixture.gaussian(0.0, 0.5), VP())
    with pytest.raises(InvalidInput, match="8-bit"):
        likelihood(model, [Batch(torch.rand(2, 1, 3, 3), {})])
    with pytest.raises(InvalidInput, match="no pictures"):
        bound(model, [])

    class Half:
        """Latents of two numbers a picture."""

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :2]

    class Doubled(Half):
        """As many numbers, and others."""

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return 2 * image

    for space in (Half(), Doubled()):
        latent = Model(model.denoiser, Nothing(), space)  # type: ignore[arg-type]
        for metric in (likelihood, bound):
            with pytest.raises(InvalidInput, match="decoder is not exact"):
                metric(latent, [bytes_batch(2, (1, 2, 2))])
    stacked = model_of(UniformData(), VP(), 1)
    stacked.space = Pixel(1, patch=2, multiple=1)
    plain = model_of(UniformData(), VP(), 1)
    values = [likelihood(each, [bytes_batch(2, (1, 4, 4))]).value for each in (stacked, plain)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    for wrong in (
        {"divergence": "both"},
        {"probe": "cauchy"},
        {"probes": 0},
        {"rtol": 0.0},
        {"atol": -1.0},
        {"t_min": 1.0},
    ):
        with pytest.raises(InvalidInput, match="likelihood"):
            FlowLikelihood(**wrong)
    broken = lambda x, level, condition: Denoised(x * math.nan)  # noqa: E731
    with pytest.raises(NotFinite, match="tolerance"):
        FlowLikelihood()(ReverseProcess(broken, VP()), torch.zeros(1, 2))


def test_without_the_solver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[ode\]"):
        module._solver()
