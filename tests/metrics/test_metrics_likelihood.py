"""Likelihood against closed forms: Gaussians, mixtures and uniform noise, and dequantisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.conditioners.nothing import Nothing
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
from sfumato.metrics.bound import bound
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
    "process, t_min",
    [(VE(sigma_min=1e-4), 1e-5), (Flow(), 1e-5), (VP(), 1e-8), (SubVP(), 1e-5)],
    ids=["ve", "flow", "vp", "sub_vp"],
)
def test_a_uniform_model_of_uniform_noise_has_eight_bits(process: Process, t_min: float) -> None:
    """Density 1/2 on [-1, 1] and bins 1/128 wide: exactly 8 bits, with t_min so small that no edge blurs."""
    model = model_of(UniformData(), process)
    batches = [bytes_batch(4, (1, 6, 6)), bytes_batch(4, (1, 6, 6), seed=4)]
    found = likelihood(model, batches, flow=FlowLikelihood(t_min=t_min, rtol=1e-6, atol=1e-6))
    assert found.value == pytest.approx(8, abs=2.5e-4)
    levels = torch.cat([to_levels(batch.image) for batch in batches])
    x = Uniform()(levels, Noise(range(8))).x
    # Each row is the closed form plus its own prior mismatch.
    flow = FlowLikelihood(t_min=t_min, rtol=1e-8, atol=1e-8)
    row = flow(ReverseProcess(model.denoiser, process, source=Noise(range(8))), x.double())
    here, there = process(t_min), process(1.0)
    closed = UniformData().log_prob(here.alpha * x.double(), here) + 36 * math.log(here.alpha)
    if there.alpha:
        closed = closed + normal(row.latent.flatten(1), process.prior_std)
        closed = closed - UniformData().log_prob(row.latent, there)
    assert torch.allclose(row.nats, closed, rtol=0, atol=4e-6)
    assert torch.allclose(bits_of_bytes(row.nats, 36), torch.tensor(8.0).double(), rtol=0, atol=1e-4)
    assert found.value == pytest.approx(bits_of_bytes(row.nats, 36).mean().item(), abs=2.5e-4)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.n, found.n_real, found.dimensions) == (0, 8, 36)
    assert 50 < found.evaluations < row.evaluations


@pytest.mark.parametrize("tilt", [0.0, 0.4])
def test_bits_are_the_closed_form_and_the_prior_mismatch_that_is_told(tilt: float) -> None:
    """A process that ends early, so that its Gaussian prior is far off: KL(p_1 ‖ prior) on top of the data's.

    Of Gaussian data with this mean, a picture's KL(q(x_1 | x0) ‖ prior) is what is told: more than KL(p_1 ‖
    prior), and not much where the mean is most of it.
    """
    data, process = GaussianMixture.gaussian(tilt, 0.1), VP(beta_max=4.0)
    levels = ((data.sample(Noise(range(4000))) + 1) * 128).floor().clamp(0, 255)
    batch = Batch(to_image(levels).view(-1, 1, 1, 1).float(), {})
    found = likelihood(model_of(data, process), [batch], flow=FlowLikelihood(divergence="exact"))
    x = Uniform()(levels.view(-1, 1, 1, 1).float(), Noise(range(4000))).x.view(-1, 1).double()
    exact = (7 - data.log_prob(x) / math.log(2)).mean().item()
    end = process(1.0)
    variance = (end.alpha * 0.1) ** 2 + end.sigma**2
    mean = end.alpha * tilt
    # E log of the two densities at x_1, the second moments being those of these very pictures.
    moved = mean + (x - tilt) * math.sqrt(variance) / 0.1
    kl = (moved**2 - (moved - mean) ** 2 / variance - math.log(variance)).mean().item() / 2 / math.log(2)
    assert found.value == pytest.approx(exact + kl, abs=1e-3)
    told = (end.alpha**2 * (tilt**2 + 0.01) + end.sigma**2 - 1 - 2 * math.log(end.sigma)) / 2 / math.log(2)
    true = (mean**2 + variance - 1 - math.log(variance)) / 2 / math.log(2)
    assert found.prior == pytest.approx(told, rel=0.03)
    assert true < found.prior
    assert f"prior mismatch at most {found.prior:.2g} bits/dim" in str(found)
    if tilt:
        assert kl == pytest.approx(true, abs=0.01)
        assert kl > 0.01, "more than the tolerance, or the term could be left out"


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
    assert {"bound", "likelihood"} <= set(model_names())
    model = model_of(GaussianMixture.gaussian(0.0, 0.5, dim=4), Betas(steps=20))
    data = lambda: [bytes_batch(5, (1, 2, 2))]  # noqa: E731
    said = ask(model, data, ["bound", "likelihood"], seed=3, options={"bound": {"terms": None}})
    assert [each.label for each in said] == ["bound[bits/dim]", "likelihood[bits/dim]"]
    assert said[0] == bound(model, data(), seed=3, terms=None)
    assert said[1] == likelihood(model, data(), seed=3)
    assert said[0] != bound(model, data(), seed=4, terms=None)
    assert "5 real" in str(said[0])
    for words in (
        "20 evaluations a picture",
        "19 of 19 steps",
        "no dequantisation",
        "prior mismatch at most",
    ):
        assert words in str(said[0])
    evaluations = f"{said[1].as_dict()['evaluations']} evaluations a picture"
    for words in (evaluations, "1 rademacher probe", "uniform dequantisation", "data at t = 0.05, noise"):
        assert words in str(said[1])
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

        def encode(self, image: torch.Tensor, noise: object = None) -> torch.Tensor:
            return image.flatten(1)[:, :2]

    class Doubled(Half):
        """As many numbers, and others."""

        def encode(self, image: torch.Tensor, noise: object = None) -> torch.Tensor:
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
        {"t_min": 0.0},
        {"max_steps": 0},
        {"method": "euler"},
    ):
        with pytest.raises(InvalidInput, match="likelihood"):
            FlowLikelihood(**wrong)
    with pytest.raises(InvalidInput, match="multiple of 8"):
        likelihood(Model(model.denoiser, Nothing(), Pixel(1)), [bytes_batch(2, (1, 4, 4))])
    with pytest.raises(InvalidInput, match=r"pictures are \(B, C, H, W\)"):
        bound(model, [Batch(torch.zeros(2, 2), {})])


def test_a_solver_that_finds_no_end_says_so() -> None:
    x = torch.zeros(1, 2)
    broken = lambda x, level, condition: Denoised(x * math.nan)  # noqa: E731
    with pytest.raises(NotFinite, match="tolerance"):
        FlowLikelihood()(ReverseProcess(broken, VP()), x)
    # Late infinities too, once steps have been accepted.
    late = lambda x, level, condition: Denoised(x / (level.sigma < 0.5))  # noqa: E731
    with pytest.raises(NotFinite, match="tolerance"):
        FlowLikelihood()(ReverseProcess(late, VP()), x + 1)
    # A network as rough as noise would keep an adaptive solver for days.
    used = 0

    def counted(x: torch.Tensor, level: Level[Any], condition: Condition) -> Denoised:
        nonlocal used
        used += 1
        return Denoised(torch.sin(1e5 * x))

    with pytest.raises(InvalidInput, match=r"40 steps do not meet the tolerance.*max_steps"):
        FlowLikelihood(max_steps=40)(ReverseProcess(counted, VP()), x + 0.3)
    assert used <= 2 + 40 * 6


def test_without_the_solver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[ode\]"):
        module._solver()
