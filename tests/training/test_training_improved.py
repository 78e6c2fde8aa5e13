"""Improved DDPM: the hybrid loss, the bound alone and the resampler, against numbers of the published code.

Recorded once from openai/improved-diffusion, commit 1bc7bbb, its tables left in float64, on numbers by the
recipe `wave`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import Blobs, Points, toy_model

from sfumato.conditioners.nothing import Nothing
from sfumato.core.bound import step_bound
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.prediction import Noise as NoisePrediction
from sfumato.model import Model
from sfumato.processes.betas import Betas
from sfumato.registry import build, describe
from sfumato.training.ema import Average
from sfumato.training.levels.importance import Importance
from sfumato.training.levels.law import LevelLaw, Levels
from sfumato.training.levels.uniform import Uniform
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer

# (schedule, T): at indices 0, 1, T/2, T-1 the squared error, the bound in bits, and the norms of the
# gradients of T · bound by the mean half and by the variance half of the network's output.
SIMPLE = (0.786405258903, 1.36912660868, 1.43299014006, 1.32722869048)
SIMPLE_SLOPE = (0.255995647571, 0.337777861999, 0.345565977789, 0.332569377534)
RECORDED = {
    ("linear", 1000): (
        (2.1904023547, 0.870599031971, 0.011394403085, 0.0195394334938),
        (253.113950327, 206.453293873, 2.74773661442, 4.8960795385),
        (19.249696561, 65.9477505804, 0.00101128625072, 1.63153977032e-06),
    ),
    ("cosine", 1000): (
        (1.55880119083, 0.822771077792, 0.00645401659744, 956.437134672),
        (231.739933956, 194.911993162, 1.55604157688, 239658.549284),
        (16.4293211317, 59.0815323532, 0.0018895925771, 0.235256799738),
    ),
    ("cosine", 4000): (
        (2.31009123352 / 4, 3.08284427621 / 4, 0.00644706513186 / 4, 3825.74327797 / 4),
        (543.420805504, 729.717269397, 1.55462454038, 958632.878935),
        (42.9196674385, 208.062868615, 0.000472401974788, 0.0588140932278),
    ),
}


def wave(start: int, *shape: int) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(k * k * 0.37 + start).view(shape)


class Says(nn.Module):
    """A network that says the same whatever it is asked."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Parameter(out)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.out


class Given(Noise):
    """The noise of the recording."""

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        return 1.3 * wave(2, 4, 3, 4, 4)


class At(LevelLaw):
    """Four indices, with importance weights."""

    weight = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)

    def __call__(self, process: Any, count: int, noise: Noise) -> Levels:
        steps = process.steps
        return Levels((torch.tensor([0, 1, steps // 2, steps - 1]).double() + 1) / steps, self.weight)


def asked(schedule: Any, steps: int, **settings: Any) -> tuple[Any, Tensor]:
    """The loss at the recorded numbers, and its gradient by the network's output."""
    network = Says(wave(3, 4, 6, 4, 4))
    denoiser = NetworkDenoiser(
        network, Betas(schedule, steps), NoisePrediction(), "index", learned_range=True
    )
    batch = SimpleNamespace(image=wave(1, 4, 3, 4, 4), inputs={})
    loss = Denoising(levels=At(), drop=0, **settings).loss(
        Model(denoiser, Nothing(), Points()), batch, Given(range(4))
    )
    (slope,) = torch.autograd.grad(loss.value.sum(), network.out)
    return loss, slope


def norms(slope: Tensor) -> Tensor:
    return slope.pow(2).sum((1, 2, 3)).sqrt()


def close(got: Tensor, expected: Any, rtol: float = 1e-8) -> None:
    torch.testing.assert_close(
        got.detach().double(), torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-10
    )


@pytest.mark.parametrize("schedule, steps", RECORDED)
def test_the_hybrid_loss_is_the_published_one(schedule: str, steps: int) -> None:
    """L_simple + steps/1000 · bits ("rescaled"), and with a bound of 1000/steps the plain one, factor 1."""
    bits, _, variance = (torch.tensor(row, dtype=torch.float64) for row in RECORDED[schedule, steps])
    simple = torch.tensor(SIMPLE, dtype=torch.float64)
    for bound, factor in ((1.0, steps / 1000), (1000 / steps, 1.0)):
        loss, slope = asked(schedule, steps, bound=bound)
        close(loss.parts["bits"], bits)
        close(loss.parts["error"], simple + factor * bits)
        # Importance weights weigh the bound as well as the error.
        close(loss.value, At.weight * (simple + factor * bits))
        # The bound does not pull at the mean: its gradient is that of the squared error alone.
        close(norms(slope[:, :3]), At.weight * torch.tensor(SIMPLE_SLOPE, dtype=torch.float64))
        close(norms(slope[:, 3:]), At.weight * factor * variance / steps, rtol=1e-6)


@pytest.mark.parametrize("schedule, steps", RECORDED)
def test_the_bound_alone_is_the_published_one_and_trains_both_halves(schedule: str, steps: int) -> None:
    bits, mean, variance = (torch.tensor(row, dtype=torch.float64) for row in RECORDED[schedule, steps])
    loss, slope = asked(schedule, steps, bound_alone=True)
    close(loss.value, At.weight * steps * bits)
    close(loss.parts["error"], steps * bits)
    close(norms(slope[:, :3]), At.weight * mean)
    close(norms(slope[:, 3:]), At.weight * variance, rtol=1e-6)


def test_the_bound_alone_needs_a_variance() -> None:
    data = Blobs(count=4)
    batch = data.collate([data.load(i, 0) for i in range(4)])
    with pytest.raises(InvalidInput, match="learned_range"):
        Denoising(bound_alone=True).loss(toy_model(process=Betas()), batch, Noise(range(4)))
    settings = {"name": "denoising", "levels": {"name": "importance", "discrete": True}, "bound_alone": True}
    assert describe(build("objective", settings)) == settings


def test_the_resampler_is_the_published_one() -> None:
    """Probabilities after four rounds of losses |sin(1 + k)|, three of which are remembered."""
    law, process = Importance(bins=5, memory=3, discrete=True), Betas(values=(0.1,) * 5)
    for round_ in range(4):
        losses = torch.tensor([abs(math.sin(1 + 5 * round_ + j)) for j in range(5)], dtype=torch.float64)
        law.observe(process, torch.arange(1, 6) / 5, losses)
        if round_ < 2:
            close(law.probabilities, [0.2] * 5)
    close(law.probabilities, [0.17959653, 0.21367001, 0.21851884, 0.18057249, 0.20764213], rtol=1e-7)


def test_importance_weights_average_to_one_and_leave_a_mean_as_it_is() -> None:
    """E[w] = Σ p · 1 / (T p) = 1; E[w f(k)] is the plain mean of f."""
    law, process = Importance(bins=5, memory=1, discrete=True), Betas(values=(0.1,) * 5)
    law.observe(process, torch.arange(1, 6) / 5, torch.tensor([9.0, 1.0, 0.5, 0.1, 4.0]))
    count = 200_000
    levels = law(process, count, Noise(range(count)))
    index = (levels.t * 5 - 1).round().long()
    share = torch.bincount(index, minlength=5) / count
    close(share, law.probabilities, rtol=0.08)
    assert levels.weight.mean().item() == pytest.approx(1, abs=0.02)
    close(levels.weight, 1 / (5 * law.probabilities)[index])
    values = torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0], dtype=torch.float64)
    weighed = levels.weight * values[index]
    error = 4 * weighed.std().item() / math.sqrt(count)
    assert weighed.mean().item() == pytest.approx(values.mean().item(), abs=error)
    # Exactly, over all indices.
    assert (law.probabilities / (5 * law.probabilities)).sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variance, expected", [(0.25, 6.3024369), (1.0, 7.3145249)])
def test_the_bound_of_gaussian_data_is_its_closed_form(variance: float, expected: float) -> None:
    """The exact denoiser's bound from index 1 on: Σ ½ (SNR_(k-1) - SNR_k) · MMSE_k, in bits a dimension."""
    process = Betas()
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    level = process(t)
    error = variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)
    x0, smallest = torch.zeros(999, 1, dtype=torch.float64), torch.zeros(999, 1, dtype=torch.float64)
    bits = step_bound(process, t, x0, error.sqrt()[:, None], smallest)
    assert bits.sum().item() == pytest.approx(expected, rel=1e-7)


def test_the_bound_alone_teaches_and_lowers_the_bound(tmp_path: Any) -> None:
    """Trained by L_vlb with importance sampling, the whole bound falls, below that of the hybrid loss."""
    process = Betas("cosine", 50)
    data = Blobs(count=400, weight=0.5, jitter=0.0)
    batch = data.collate([data.load(i, 0) for i in range(400)])

    def whole(model: Model) -> float:
        """Bits a dimension, every index in turn, without the prior's."""
        condition, objective = model.conditioner(400), Denoising(bound_alone=True)
        total = 0.0
        with torch.no_grad():
            for k in range(50):
                t = torch.full((400,), (k + 1) / 50, dtype=torch.float64)
                eps = Noise(range(400), k).randn_like(batch.image)
                total += objective.errors(model, batch.image, condition, t, eps).mean().item() / 50
        return total

    def trained(name: str, objective: Denoising) -> Model:
        model = toy_model(width=64, process=process, prediction="noise", outputs=2)
        settings = Settings(
            batch=128,
            steps=300,
            optimizer=AdamW(rate=4e-3, decay="cosine", warm_up=20),
            ema=(Average(half_life=3000.0),),
            saving=Saving(every=1000, minutes=None),
        )
        return Trainer(model, data, objective, settings, tmp_path / name).train()

    start = whole(toy_model(width=64, process=process, prediction="noise", outputs=2))
    levels = Importance(bins=50, memory=4, discrete=True)
    alone = whole(trained("alone", Denoising(levels=levels, bound_alone=True, drop=1.0)))
    hybrid = whole(trained("hybrid", Denoising(levels=Uniform(discrete=True), drop=1.0)))
    assert hybrid < start / 10
    assert alone < 0.9 * hybrid
    # It learnt where the bound is large: the cleanest indices.
    assert levels.probabilities.argmax() < 10
