"""The denoising objective: its parts one by one, and that it teaches."""

import dataclasses
import math

import pytest
import torch
from training_toys import Blobs, toy_model

from sfumato.core.bound import step_bound
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.betas import Betas
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.samplers.heun import Heun
from sfumato.times.uniform import Uniform as UniformTimes
from sfumato.training.ema import Average
from sfumato.training.levels.uniform import Uniform
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer
from sfumato.training.weights.snr import SNR


def batch(count=64, shape=(2,)):
    data = Blobs(count=count, shape=shape)
    return data.collate([data.load(i, 0) for i in range(count)])


class Spy(torch.nn.Module):
    """A denoiser that remembers what it was asked and says a fixed share of the data."""

    def __init__(self, answer):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.answer = answer
        self.process, self.prediction = VP(), toy_model().denoiser.prediction
        self.network = self

    def forward(self, x, level, condition):
        self.x, self.level, self.condition = x, level, condition
        return Denoised(self.answer.expand_as(x) + self.weight)


def spied(answer):
    model = toy_model()
    model.denoiser = Spy(answer)
    return model


def test_the_loss_is_the_weighted_error_of_what_was_asked():
    data = batch()
    model = spied(torch.zeros(1, 2))
    loss = Denoising(weight=SNR(), drop=0).loss(model, data, Noise(range(64)))
    level = model.process(loss.t)
    assert torch.allclose(model.denoiser.level.alpha, level.alpha.float()[:, None])
    eps = (model.denoiser.x - model.denoiser.level.alpha * data.image) / model.denoiser.level.sigma
    assert torch.allclose(eps, Noise(range(64)).randn((64, 2), "noise"), atol=2e-4)
    expected = level.alpha**2 / level.sigma**2 * (data.image.double() ** 2).mean(1)
    assert torch.allclose(loss.value.double(), expected, rtol=1e-5)


def test_condition_dropout_drops_its_share_and_only_that():
    data = batch(2000)
    model = spied(torch.zeros(1, 2))
    Denoising(drop=0.2).loss(model, data, Noise(range(2000)))
    said = model.denoiser.condition.vector
    dropped = (said == 0).all(1)
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)
    full = model.conditioner(2000, **data.inputs).vector
    assert torch.equal(said[~dropped], full[~dropped])
    Denoising(drop=1.0).loss(model, data, Noise(range(2000)))
    assert not model.denoiser.condition.vector.any()


def test_offset_noise_moves_whole_channels_and_is_part_of_the_target():
    data = batch(3000, (3, 4, 4))
    model = spied(torch.zeros(1, 3, 4, 4))
    Denoising(offset_noise=0.3).loss(model, data, Noise(range(3000)))
    level = model.denoiser.level
    eps = (model.denoiser.x - level.alpha * data.image) / level.sigma
    assert eps.mean((2, 3)).var().item() == pytest.approx(1 / 16 + 0.09, rel=0.05)
    assert (eps - eps.mean((2, 3), keepdim=True)).var().item() == pytest.approx(15 / 16, rel=0.05)
    # x_t = alpha x0 + sigma (eps + offset): a network that answers x0 exactly has no loss at all.
    perfect = spied(data.image)
    assert Denoising(offset_noise=0.3).loss(perfect, data, Noise(range(3000))).value.max() == 0


def test_the_loss_of_a_row_hangs_on_nothing_but_the_row():
    data, model = batch(16), toy_model()
    whole = Denoising().loss(model, data, Noise(range(16)))
    data.image, data.inputs = data.image[8:], {"kind": data.inputs["kind"][8:]}
    half = Denoising().loss(model, data, Noise(range(8, 16)))
    assert torch.allclose(whole.value[8:], half.value, rtol=1e-5)
    assert torch.equal(whole.t[8:], half.t)


def test_bound_is_the_kl_of_the_two_reverse_gaussians():
    process = Betas(steps=50)
    t = torch.tensor([2.0, 10.0, 50.0], dtype=torch.float64) / 50
    x0, mean = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    fraction = torch.rand(3, 4, dtype=torch.float64) * 1.4 - 0.2
    got = step_bound(process, t, x0, mean, fraction)
    bar, beta = process.alphas_cumprod, process.betas
    for row, k in enumerate((1, 9, 49)):
        small = beta[k] * (1 - bar[k - 1]) / (1 - bar[k])
        step_mean = lambda x, k=k, x_t=0.7: (  # noqa: E731
            bar[k - 1].sqrt() * beta[k] / (1 - bar[k]) * x
            + (1 - beta[k]).sqrt() * (1 - bar[k - 1]) / (1 - bar[k]) * x_t
        )
        variance = torch.exp(fraction[row] * beta[k].log() + (1 - fraction[row]) * small.log())
        true = torch.distributions.Normal(step_mean(x0[row]), small.sqrt())
        said = torch.distributions.Normal(step_mean(mean[row]), variance.sqrt())
        expected = torch.distributions.kl_divergence(true, said).mean() / torch.log(torch.tensor(2.0))
        assert got[row].item() == pytest.approx(expected.item(), rel=1e-6)


def test_bound_of_the_first_index_is_the_likelihood_of_bytes():
    process = Betas(steps=50)
    one = torch.tensor([1 / 50], dtype=torch.float64)
    values = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[None]
    mean = torch.full((1, 256), 0.1, dtype=torch.float64)
    fraction = torch.full((1, 256), 1.0, dtype=torch.float64)
    nats = [
        step_bound(process, one, values[:, [i]], mean[:, :1], fraction[:, :1]) * math.log(2)
        for i in range(256)
    ]
    # The 256 probabilities are a distribution: telescoping bins, open at both ends (floor 1e-12 each).
    assert torch.exp(-torch.stack(nats)).sum().item() == pytest.approx(1, abs=1e-9)
    gaussian = torch.distributions.Normal(0.1, process.betas[0].sqrt())
    centre = 140
    exact = gaussian.cdf(values[0, centre] + 1 / 255) - gaussian.cdf(values[0, centre] - 1 / 255)
    assert torch.exp(-nats[centre]).item() == pytest.approx(exact.item(), rel=2e-3)


def test_the_bound_trains_the_variance_alone():
    data = batch(16, (3, 2, 2))
    model = toy_model(process=Betas(steps=20), prediction="noise", size=12, outputs=2)
    objective = Denoising(levels=Uniform(discrete=True), drop=0)
    last = model.denoiser.network.inner[-1]
    plain, hybrid = [], []
    for rows, bound in ((plain, 0.0), (hybrid, 50.0)):
        model.denoiser.zero_grad()
        dataclasses.replace(objective, bound=bound).loss(
            model, data, Noise(range(16))
        ).value.mean().backward()
        rows.append(last.weight.grad.clone())
    mean_half, variance_half = slice(0, 12), slice(12, 24)
    assert torch.allclose(plain[0][mean_half], hybrid[0][mean_half], atol=1e-6)
    assert not plain[0][variance_half].any()
    assert hybrid[0][variance_half].abs().sum() > 1e-4


def test_a_trained_model_finds_the_modes_and_their_weights(tmp_path):
    """Two blobs of weights .3 and .7: 1,000 steps, then samples are counted and measured."""
    data = Blobs(count=400, weight=0.3, jitter=0.0)
    truth = sum(data.load(i, 0).inputs["kind"] == "left" for i in range(400)) / 400
    settings = Settings(
        batch=128,
        steps=1000,
        optimizer=AdamW(rate=1e-2, decay="cosine", warm_up=20),
        ema=(Average(half_life=3000.0),),
        saving=Saving(every=1000, minutes=None),
    )
    model = toy_model(width=64, process=Flow(), prediction="flow")
    Trainer(model, data, Denoising(drop=0.5), settings, tmp_path).train()
    count = 2000
    with torch.no_grad():
        nothing = Condition(vector=torch.zeros(count, 2))
        reverse = ReverseProcess(model.denoiser, model.process, nothing, Noise(range(count)))
        points = sample(Heun(), reverse, reverse.prior((count, 2)), UniformTimes()(model.process, 24))
        left = points.sum(1) < 0
        assert left.float().mean().item() == pytest.approx(truth, abs=0.05)
        for side, centre in ((left, -0.6), (~left, 0.6)):
            assert torch.allclose(points[side].mean(0), torch.tensor(centre), atol=0.05)
            assert torch.allclose(points[side].std(0), torch.tensor(0.1), atol=0.05)
        # Told which, it draws that one.
        said = model.conditioner(count, kind="left")
        reverse = dataclasses.replace(reverse, condition=said)
        points = sample(Heun(), reverse, reverse.prior((count, 2)), UniformTimes()(model.process, 24))
        assert (points.sum(1) < 0).float().mean() > 0.99
        # And it comes close to the exact denoiser of the mixture at a middling level.
        exact = GaussianMixture(
            torch.tensor([[-0.6, -0.6], [0.6, 0.6]]),
            torch.tensor([0.1, 0.1]),
            torch.tensor([truth, 1 - truth]),
        )
        level = model.process(0.4)
        x = level.alpha * exact.sample(Noise(range(count))) + level.sigma * Noise(range(count)).randn(
            (count, 2), "e"
        )
        gap = model.denoiser(x.float(), level, nothing).x0 - exact(x, level).x0
        spread = exact(x, level).x0.std()
        assert gap.pow(2).mean().sqrt() < 0.2 * spread
    assert isinstance(level, Level)
