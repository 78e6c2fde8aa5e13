"""Laws of noise levels against their closed forms, and weights against the identities between errors."""

import math

import pytest
import torch
from scipy import stats

from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS
from sfumato.processes.betas import Betas
from sfumato.processes.cosine import Cosine
from sfumato.processes.edm import EDM as EDMProcess
from sfumato.processes.flow import Flow
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, describe, find, names
from sfumato.training.levels.importance import Importance
from sfumato.training.levels.log_normal import LogNormal
from sfumato.training.levels.logit_normal import LogitNormal
from sfumato.training.levels.uniform import Uniform
from sfumato.training.weights.edm import EDM
from sfumato.training.weights.min_snr import MinSNR
from sfumato.training.weights.p2 import P2
from sfumato.training.weights.snr import SNR
from sfumato.training.weights.uniform import Uniform as Native

COUNT = 20_000
PROCESSES = [VP(), VE(), Cosine(), Flow(), EDMProcess(), Betas()]


def draw(law, process, count=COUNT, step=0):
    return law(process, count, Noise(torch.arange(count), step))


@pytest.mark.parametrize("stratified", [False, True])
def test_uniform_is_uniform(stratified):
    t = draw(Uniform(stratified=stratified), VP()).t
    assert t.dtype == torch.float64
    low = VP().t_min
    assert stats.kstest(t.numpy(), stats.uniform(low, 1 - low).cdf).pvalue > 0.01


def test_uniform_discrete_hits_every_index_alike():
    process = Betas(steps=20)
    index = draw(Uniform(discrete=True), process).t * 20 - 1
    assert torch.equal(index, index.round())
    counts = torch.bincount(index.long(), minlength=20)
    assert len(counts) == 20
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_log_normal_is_the_published_law():
    level = EDMProcess()(draw(LogNormal(), EDMProcess()).t)
    log_sigma = torch.log(level.sigma).numpy()
    assert stats.kstest(log_sigma, stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    # The law is one of noise levels, not of times: another process gives the same levels.
    other = VP()(draw(LogNormal(), VP()).t).log_snr
    inside = other < VP()(VP().t_min).log_snr - 1e-6
    assert torch.allclose(-other[inside], torch.from_numpy(log_sigma)[inside], atol=1e-9)


def test_logit_normal_is_the_published_law():
    t = draw(LogitNormal(mean=0.3, std=0.8), Flow()).t
    assert stats.kstest(torch.logit(t).numpy(), stats.norm(0.3, 0.8).cdf).pvalue > 0.01


@pytest.mark.parametrize("law", [Uniform(), LogNormal(), LogitNormal(), Importance()])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_levels_stay_in_range_and_follow_the_rows_alone(law, process):
    levels = draw(law, process, 500)
    assert bool((levels.t >= process.t_min).all())
    assert bool((levels.t <= 1).all())
    assert torch.equal(levels.weight, torch.ones(500, dtype=torch.float64))
    some = law(process, 3, Noise([5, 7, 11]))
    assert torch.equal(some.t, levels.t[[5, 7, 11]])


@pytest.mark.parametrize(
    "law", [Uniform(stratified=True), LogitNormal(stratified=True), LogNormal(stratified=True)]
)
def test_stratified_batches_vary_less_and_every_row_sees_all_levels(law):
    free = type(law)()
    means = {True: [], False: []}
    first_rows = []
    for step in range(300):
        for which, each in ((True, law), (False, free)):
            t = draw(each, Flow(), 16, step).t
            means[which].append(t.mean())
        first_rows.append(draw(law, Flow(), 16, step).t[0])
    spread = {which: torch.stack(values).std() for which, values in means.items()}
    assert spread[True] < spread[False] / 8
    places = torch.stack(first_rows).sort().values
    reference = draw(free, Flow(), 300).t
    assert stats.ks_2samp(places.numpy(), reference.numpy()).pvalue > 0.01


@pytest.mark.parametrize("discrete", [False, True])
def test_importance_learns_the_loss_and_stays_unbiased(discrete):
    process = Betas(steps=40)
    law = Importance(bins=20, memory=4, discrete=discrete)
    loss = lambda t: 0.05 + (t > 0.8) * 3.0 + t  # noqa: E731

    def observe(step):
        levels = draw(law, process, 64, step)
        law.observe(process, levels.t, loss(levels.t))

    observe(0)
    assert torch.allclose(law.probabilities, torch.full((20,), 0.05, dtype=torch.float64))
    for step in range(1, 30):
        observe(step)
    p = law.probabilities
    assert p.sum().item() == pytest.approx(1)
    assert p.min() >= 0.001 / 20
    assert p[-1] > 5 * p[2]
    levels = draw(law, process)
    plain = loss(draw(Uniform(discrete=discrete), process).t)
    weighted = levels.weight * loss(levels.t)
    # The estimate of the mean loss keeps its mean and loses most of its variance: that is what it is for.
    assert weighted.mean().item() == pytest.approx(plain.mean().item(), rel=0.02)
    assert weighted.std() < plain.std() / 2
    assert loss(levels.t).mean() > 1.5 * plain.mean(), "without weights it would be far off"
    # p is the published formula of the memory.
    moments = (law.state_dict()["losses"] ** 2).mean(1).sqrt()
    assert torch.allclose(p, 0.999 * moments / moments.sum() + 0.001 / 20)
    again = Importance(bins=20, memory=4, discrete=discrete)
    again.load_state_dict(law.state_dict())
    assert torch.equal(again.probabilities, p)
    assert torch.equal(draw(again, process, 50).t, levels.t[:50])


def test_importance_forgets_the_oldest():
    law = Importance(bins=2, memory=3)
    process = Flow()
    for value in range(1, 6):
        law.observe(process, torch.tensor([0.1, 0.9]), torch.tensor([float(value), 1.0]))
    assert sorted(law.state_dict()["losses"][0].tolist()) == [3, 4, 5]


def errors(prediction, level, x0, eps, guess):
    """Squared error of the network's own output when it says `guess` for x0, by its definition alone."""
    x_t = level.alpha * x0 + level.sigma * eps
    skip, out = prediction.coefficients(level)
    output = (guess - skip * x_t) / out
    return ((output - prediction.target(x0, eps, level)) ** 2).mean(1)


@pytest.mark.parametrize("name", sorted(PREDICTIONS))
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_uniform_weight_is_the_error_of_the_networks_own_output(name, process):
    prediction = PREDICTIONS[name]()
    t = torch.linspace(process.t_min, 0.99, 30, dtype=torch.float64)
    level = process(t)
    generator = torch.Generator().manual_seed(0)
    x0, eps, guess = (torch.randn(30, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    own = errors(prediction, Level(level.alpha[:, None], level.sigma[:, None]), x0, eps, guess)
    weighted = Native()(level, prediction) * ((guess - x0) ** 2).mean(1)
    assert torch.allclose(own, weighted, rtol=1e-9)


def test_weights_of_the_sheet():
    level = VP()(torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    ratio = level.alpha**2 / level.sigma**2
    noise, velocity = PREDICTIONS["noise"](), PREDICTIONS["velocity"]()
    table = {
        SNR(): ratio,
        MinSNR(): ratio.clamp_max(5),
        MinSNR(gamma=1): ratio.clamp_max(1),
        MinSNR(gamma=5, least=1): ratio.clamp(1, 5),
        MinSNR(gamma=math.inf, least=1): ratio.clamp_min(1),
        P2(): ratio / (1 + ratio),
        P2(k=2, gamma=0.5): ratio / (2 + ratio).sqrt(),
        P2(gamma=0): ratio,
        EDM(sigma_data=0.7): (level.ratio**2 + 0.49) / (level.ratio * 0.7) ** 2,
    }
    for weight, expected in table.items():
        for prediction in (noise, velocity):
            assert torch.allclose(weight(level, prediction), expected, rtol=1e-12)
    # Noise error = SNR · x0 error; velocity error = (SNR + 1) · x0 error at unit variance.
    assert torch.allclose(Native()(level, noise), ratio, rtol=1e-12)
    assert torch.allclose(Native()(level, velocity), ratio + 1, rtol=1e-9)
    # The last two columns of the table: on the error of eps and of v.
    assert torch.allclose(MinSNR()(level, noise) / ratio, ratio.clamp_max(5) / ratio)
    # EDM's weight is its own output's plain error, on any process.
    for process in PROCESSES:
        level = process(torch.linspace(process.t_min, 0.99, 50, dtype=torch.float64))
        edm = PREDICTIONS["edm"]()
        assert torch.allclose(EDM()(level, edm), Native()(level, edm), rtol=1e-9)


def test_edm_weight_makes_the_initial_loss_one():
    """A network saying 0, D = c_skip · x, on data of variance sigma_data²: weight · error is 1 everywhere."""
    weight, edm = EDM(), PREDICTIONS["edm"]()
    x0 = 0.5 * Noise(torch.arange(4000)).randn((4000, 8), "x").double()
    eps = Noise(torch.arange(4000)).randn((4000, 8), "eps").double()
    for t in (0.0005, 0.005, 0.05, 0.9):
        level = EDMProcess()(torch.tensor(t, dtype=torch.float64))
        skip, _ = edm.coefficients(level)
        error = ((skip * (level.alpha * x0 + level.sigma * eps) - x0) ** 2).mean()
        assert (weight(level, edm) * error).item() == pytest.approx(1, rel=0.03)


def test_every_law_and_weight_is_named_and_described():
    assert names("levels") == [
        "importance",
        "likelihood",
        "log_normal",
        "logit_normal",
        "soft_truncation",
        "uniform",
    ]
    assert names("weight") == ["edm", "likelihood", "min_snr", "p2", "snr", "uniform"]
    beside = ["autoencoding", "classification", "clip", "dequantization", "drafting", "reflow"]
    assert names("objective") == sorted([*beside, "denoising"])
    for kind in ("levels", "weight"):
        for name in names(kind):
            assert describe(build(kind, name)) == {"name": name}
            assert find(kind, name).__doc__
    settings = {
        "name": "denoising",
        "levels": {"name": "log_normal", "mean": -0.5},
        "weight": {"name": "p2", "k": 2.0},
    }
    objective = build("objective", settings)
    assert describe(objective) == settings
    assert objective.levels == LogNormal(mean=-0.5)
    assert math.isclose(objective.weight.k, 2)


def test_min_snr_refuses_an_empty_range():
    with pytest.raises(InvalidInput, match="no range of weights"):
        MinSNR(gamma=1, least=2)
