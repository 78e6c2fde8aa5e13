"""Training for likelihood: weight and levels by the integrals they stand for, and a learned dequantizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from training_toys import toy_model

from sfumato.conditioners.nothing import Nothing
from sfumato.core.bound import likelihood_weight
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.dequantize import Uniform, bits_of_bytes, to_levels
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS, Data
from sfumato.core.process import Process
from sfumato.data.picture import to_image
from sfumato.model import Model
from sfumato.processes.betas import Betas
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel
from sfumato.training.levels.likelihood import Likelihood
from sfumato.training.levels.soft_truncation import SoftTruncation
from sfumato.training.levels.uniform import Uniform as UniformTimes
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.objectives.dequantization import Dequantization
from sfumato.training.weights.likelihood import Likelihood as LikelihoodWeight
from sfumato.training.weights.snr import SNR

COUNT = 20_000
PROCESSES = [VP(), VE(), Flow(), EDM(), Betas()]


def draw(law: Any, process: Any, count: int = COUNT) -> Any:
    return law(process, count, Noise(torch.arange(count)))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_likelihood_levels_are_uniform_in_log_snr(process: Any) -> None:
    levels = draw(Likelihood(), process)
    low, high = process.log_snr_range()
    place = (process(levels.t).log_snr - low) / (high - low)
    assert stats.kstest(place.numpy(), "uniform").pvalue > 0.01
    # With the weight of the bound, what is left on the error of the noise is one constant.
    level = process(levels.t)
    left = levels.weight * likelihood_weight(process, levels.t) * (level.sigma / level.alpha) ** 2
    # The noise error's weight is -½ d(log SNR)/dt, and log SNR is twice log(alpha/sigma).
    constant = (high - low) / (1 - process.t_min)
    assert torch.allclose(left, torch.full_like(left, constant), rtol=1e-6)


@pytest.mark.parametrize("process", [VP(), Flow(), VE()], ids=lambda p: type(p).__name__)
def test_importance_leaves_the_expectation_and_takes_the_variance(process: Any) -> None:
    """The bound of Gaussian data: ∫ -½ SNR' s²σ²/(α²s²+σ²) dt = ½ log of the ratio of (1 + s² SNR)."""
    std = 0.5

    def weighted(levels: Any) -> torch.Tensor:
        level = process(levels.t)
        error = std**2 * level.sigma**2 / ((level.alpha * std) ** 2 + level.sigma**2)
        return (1 - process.t_min) * levels.weight * likelihood_weight(process, levels.t) * error

    important, plain = weighted(draw(Likelihood(), process)), weighted(draw(UniformTimes(), process))
    low, high = process.log_snr_range()
    integral = math.log((1 + std**2 * math.exp(2 * high)) / (1 + std**2 * math.exp(2 * low))) / 2
    error = important.std().item() / math.sqrt(COUNT)
    assert important.mean().item() == pytest.approx(integral, abs=4 * error)
    assert error < 0.02 * integral
    stratified = weighted(draw(Likelihood(stratified=True), process)).mean().item()
    assert stratified == pytest.approx(integral, rel=1e-3)
    if isinstance(process, VE):
        # There log-SNR is even in time already.
        assert torch.allclose(important.std(), plain.std(), rtol=0.05)
    else:
        assert important.std() < plain.std() / 4


def test_the_weight_makes_denoising_the_bound() -> None:
    """The objective with both: weight · importance · error is a constant times the error of the noise."""
    model = toy_model(process=VP())
    rows = SimpleNamespace(image=Noise(range(16)).randn((16, 2), "x"), inputs={"kind": ["left"] * 16})
    own = Denoising(levels=Likelihood(), weight=LikelihoodWeight(), drop=0)
    simple = Denoising(levels=Likelihood(), weight=SNR(), drop=0)
    first = own.loss(model, rows, Noise(range(16)))  # type: ignore[arg-type]
    second = simple.loss(model, rows, Noise(range(16)))  # type: ignore[arg-type]
    low, high = VP().log_snr_range()
    constant = (high - low) / (1 - VP().t_min)
    assert torch.allclose(first.value, constant * second.parts["error"], rtol=1e-4)
    with pytest.raises(InvalidInput, match="a time and a process"):
        LikelihoodWeight()(VP()(torch.tensor([0.5], dtype=torch.float64)), PREDICTIONS["noise"]())


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("k", [0.0, 1.0, 1.2, 3.0])
def test_soft_truncation_weighs_times_by_the_share_of_smaller_starts(k: float, importance: bool) -> None:
    """E[weight · f(t)] = E_uniform[F(t) f(t)]: Kim et al.'s theorem 1, with one start a row."""
    process = EDM(sigma_min=0.05, sigma_max=5.0)
    least = process.t_min

    def share(t: torch.Tensor) -> torch.Tensor:
        if k == 1:
            return torch.log(t / least) / math.log(1 / least)
        return (t ** (1 - k) - least ** (1 - k)) / (1 - least ** (1 - k))

    law = SoftTruncation(k=k, importance=importance)
    starts = law.smallest(process, torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    assert torch.allclose(share(starts), torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    levels = draw(law, process)
    assert bool((levels.t >= least).all() & (levels.t <= 1).all())
    grid = torch.linspace(least, 1, 20001, dtype=torch.float64)
    for f in (torch.ones_like, lambda t: t, lambda t: (t < 0.2).double()):
        wanted = torch.trapezoid(share(grid) * f(grid), grid).item() / (1 - least)
        got = levels.weight * f(levels.t)
        assert got.mean().item() == pytest.approx(wanted, abs=4.5 * got.std().item() / math.sqrt(COUNT))


@pytest.mark.parametrize(
    "law", [Likelihood(), SoftTruncation(), SoftTruncation(importance=True)], ids=lambda law: str(law)
)
def test_rows_follow_their_own_noise(law: Any) -> None:
    whole = draw(law, VP(), 50)
    some = law(VP(), 2, Noise([7, 31]))
    assert torch.equal(some.t, whole.t[[7, 31]])
    assert torch.equal(some.weight, whole.weight[[7, 31]])


@dataclass(frozen=True)
class Line(Process):
    """sigma = t at alpha = 1: log-SNR is -log t, and the bound of points, ∫ dt / t, is even in log t."""

    def level(self, t: torch.Tensor) -> Level[torch.Tensor]:
        return Level(torch.ones_like(t), t)

    def invert(self, log_snr: torch.Tensor) -> torch.Tensor:
        return torch.exp(-log_snr)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.7])
def test_soft_truncation_sees_the_large_levels_more_often(part: float) -> None:
    """Those above t_min^a: 1 - (1-a)² of the loss instead of a; by importance, a (1 - log a) of the rows."""
    process = Line()
    edge = process.t_min**part

    def shares(law: Any) -> tuple[float, float]:
        levels = draw(law, process, 200_000)
        large = (levels.t > edge).double()
        # The error of points is sigma², so that weight and error leave 1 / t.
        assert torch.allclose(likelihood_weight(process, levels.t) * levels.t**2, 1 / levels.t)
        loss = levels.weight / levels.t
        return ((loss * large).mean() / loss.mean()).item(), large.mean().item()

    plain, soft = shares(Likelihood()), shares(SoftTruncation(importance=True))
    assert plain == pytest.approx((part, part), abs=0.005)
    assert soft == pytest.approx((1 - (1 - part) ** 2, part * (1 - math.log(part))), abs=0.005)
    # The loss is the same for uniform times, only dearer to estimate.
    assert shares(SoftTruncation())[0] == pytest.approx(soft[0], abs=0.05)
    # A start uniform in τ turns further to the large levels; a large power is no truncation.
    even = shares(SoftTruncation(k=0.0, importance=True))
    assert even[0] > soft[0] > plain[0]
    assert even[1] > soft[1] > plain[1]
    assert shares(SoftTruncation(k=20.0, importance=True)) == pytest.approx(plain, abs=0.02)


def test_soft_truncation_tempers_the_second_moment() -> None:
    """For the loss 1/t of uniform times: E_τ[(1-τ)²/τ] / (1-t_min)² at k = 1, in place of 1 / t_min."""
    process = Line()
    least = process.t_min
    spread = math.log(1 / least)
    moments, means = [], []
    for law in (UniformTimes(), SoftTruncation(k=1.0)):
        # Every quantile of both draws, for a mean of rare 1/t² that chance would not find.
        u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        start = law.smallest(process, u) if isinstance(law, SoftTruncation) else torch.full_like(u, least)
        t = torch.exp(torch.log(start)[:, None] * (1 - u))
        weight = (1 - start)[:, None] / (1 - least)
        # Times of a start are read off log-evenly, of density t log(1/start) / (1 - start) to the uniform.
        density = -torch.log(start)[:, None] * t / (1 - start)[:, None]
        means.append((density * weight / t).mean().item())
        moments.append((density * (weight / t) ** 2).mean().item())
        levels = draw(law, process, 200_000)
        got = levels.weight / levels.t
        assert got.mean().item() == pytest.approx(means[-1], abs=4 * got.std().item() / math.sqrt(200_000))
        assert got.square().mean().item() == pytest.approx(moments[-1], rel=0.25)
    closed = (1 / least - 2 * spread - least) / (spread * (1 - least) ** 2)
    assert moments == pytest.approx([1 / least, closed], rel=1e-4)
    assert means == pytest.approx([spread / (1 - least), spread / (2 * (1 - least))], rel=1e-4)
    with pytest.raises(InvalidInput, match="power"):
        SoftTruncation(k=-1.0)


NARROW = GaussianMixture(
    torch.tensor([[-0.301], [0.2043]], dtype=torch.float64),
    torch.tensor([0.004, 0.003], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64),
)
"""Two peaks of one pixel, each about as wide as a bin of 1/128."""


class Oracle(NetworkDenoiser):
    """The exact denoiser of a mixture in a model's place."""

    def __init__(self, data: GaussianMixture, process: Any) -> None:
        super().__init__(torch.nn.Linear(1, 1), process, Data())
        self.data = data

    def forward(self, x: torch.Tensor, level: Level[Any], condition: Condition) -> Denoised:
        flat = Level(*(torch.as_tensor(part, dtype=torch.float64).view(-1) for part in level))
        return Denoised(self.data(x.double().flatten(1), flat).x0.view(x.shape).to(x))


def narrow_batch(seeds: range) -> Any:
    levels = ((NARROW.sample(Noise(seeds)) + 1) * 128).floor()
    return SimpleNamespace(image=to_image(levels).view(-1, 1, 1, 1), inputs={})


def test_a_trained_dequantizer_comes_near_the_true_bits() -> None:
    """Where the discrete law is known: uniform > variational >= -log2 P(byte), most of the gap closed."""
    model = Model(Oracle(NARROW, VE(sigma_min=2e-4, sigma_max=10.0)), Nothing(), Pixel(1, multiple=1))
    objective = Dequantization(channels=1, width=24, depth=1, stratified=True)
    optimizer = torch.optim.Adam([p for _, p in objective.parameters(model)], 2e-2)
    size, steps = 256, 250
    pool = narrow_batch(range(size * 16)).image
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        batch = SimpleNamespace(image=pool[step % 16 * size :][:size], inputs={})
        loss = objective.loss(model, batch, Noise(range(size), step))
        optimizer.zero_grad()
        loss.value.mean().backward()
        optimizer.step()
    assert all(p.grad is None for p in model.denoiser.parameters())
    test = narrow_batch(range(10**6, 10**6 + 4000))
    levels = to_levels(test.image)

    def bits(dequantizer: Any) -> torch.Tensor:
        with torch.no_grad():
            made = dequantizer(levels, Noise(range(4000)))
        return bits_of_bytes(NARROW.log_prob(made.x.double().flatten(1)) - made.log_q.double(), 1)

    # The bytes' own law, by the distribution function of the mixture.
    low, high = (((levels + edge) / 128 - 1).double().flatten() for edge in (0, 1))
    mass = sum(
        w * (stats.norm.cdf(high, m, s) - stats.norm.cdf(low, m, s))
        for w, m, s in zip(
            NARROW.weights.tolist(), NARROW.means[:, 0].tolist(), NARROW.stds.tolist(), strict=True
        )
    )
    best = -torch.log2(torch.as_tensor(mass))
    uniform, learned = bits(Uniform()), bits(objective.dequantizer)
    error = 3 * (learned - best).std().item() / math.sqrt(4000)
    assert uniform.mean() - best.mean() > 0.3
    assert learned.mean() - best.mean() > -error, "a bound below the truth is none"
    assert learned.mean() - best.mean() < 0.25 * (uniform.mean() - best.mean())
    # In every byte of weight the bound holds too, not only on the mean.
    for byte in levels.flatten().unique().tolist():
        rows = levels.flatten() == byte
        if rows.sum() > 200:
            gap = (learned - best)[rows]
            assert gap.mean() > -4 * gap.std() / math.sqrt(len(gap)) - 1e-3


def test_the_objective_is_described_and_keeps_what_it_learnt() -> None:
    settings = {"name": "dequantization", "channels": 1, "width": 8}
    objective = build("objective", settings)
    assert describe(objective) == settings
    same, other = build("objective", settings), build("objective", {**settings, "seed": 1})
    weights = [each.state_dict() for each in (objective, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    with torch.no_grad():
        objective.dequantizer.network[-1].bias.fill_(0.3)
    same.load_state_dict(objective.state_dict())
    assert torch.equal(same.dequantizer.network[-1].bias, objective.dequantizer.network[-1].bias)
    assert set(objective.modules()) == {"dequantizer"}
    model = Model(Oracle(NARROW, VE(sigma_min=2e-4, sigma_max=10.0)), Nothing(), Pixel(1, multiple=1))
    assert {p for _, p in objective.parameters(model)} == set(objective.dequantizer.parameters())
    batch = narrow_batch(range(6))
    whole = objective.loss(model, batch, Noise(range(6)))
    batch.image = batch.image[4:]
    half = objective.loss(model, batch, Noise(range(4, 6)))
    assert torch.allclose(whole.value[4:], half.value, rtol=1e-4)
    t, eps = torch.full((2,), 0.3, dtype=torch.float64), torch.ones(2, 1, 1, 1)
    found = objective.errors(model, batch.image, Condition(), t, eps)
    assert found.shape == (2,)
    assert torch.equal(found, objective.errors(model, batch.image, Condition(), t, eps))
    assert not torch.equal(found, objective.errors(model, batch.image, Condition(), t, 2 * eps))
