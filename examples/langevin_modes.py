"""Train a score network on two modes of weights 4:1, and see which samplers find out the weights.

Langevin steps at the least noise never cross from mode to mode: they keep the weights of their start.
Annealed from noise that joins the modes they find them, and so do predictor and corrector together.

python examples/langevin_modes.py     # a minute on one core
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import EDM
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, sample
from sfumato.networks.mlp import MLP
from sfumato.processes.ncsn import NCSN, largest_distance
from sfumato.samplers.langevin import Langevin
from sfumato.samplers.predictor_corrector import PredictorCorrector
from sfumato.times.trailing import Trailing

# Figure 3 of Song & Ermon 2019, arXiv:1907.05600, on the scale of a unit.
DATA = GaussianMixture(
    torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.full((2,), 0.2), torch.tensor([0.8, 0.2])
)


def train(steps: int, levels: int = 40, batch: int = 512) -> NetworkDenoiser:
    """A network that knows the score at every level of a ladder chosen from the data."""
    ladder = NCSN(0.05, 4 * largest_distance(DATA.sample(Noise(range(2000)))), levels)
    model = NetworkDenoiser(MLP(width=64), ladder, EDM(1.0), "index")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        noise = Noise(torch.arange(batch), step)
        x = DATA.sample(noise).float()
        index = (noise.uniform((batch,), "index") * levels).floor()
        level = ladder((index + 1) / levels).like(x)
        # Of the network's own output, at every level of unit variance.
        weight = model.prediction.coefficients(level)[1] ** -2
        x0 = model(x + level.sigma * noise.randn_like(x), level, Condition()).x0
        loss = (weight * (x0 - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def weight(model: NetworkDenoiser, sampler: Sampler, count: int, times: Tensor, start: Tensor) -> float:
    """The share of samples in the mode that has .8 of the data."""
    reverse = ReverseProcess(model, model.process, source=Noise(range(count)))
    with torch.no_grad():
        x = sample(sampler, reverse, start, times)
    return float((x.sum(1) > 0).double().mean())


def weights(model: NetworkDenoiser, count: int, steps: int = 20) -> dict[str, float]:
    """That share for Langevin steps at one level, annealed, and a few of them before each ancestral step."""
    ladder, seeds = model.process, Noise(range(count))
    down = Trailing()(ladder, ladder.steps)
    box = 4 * seeds.uniform((count, 2), "box").float() - 2
    noise = ladder.prior((count, 2), seeds)
    both = PredictorCorrector(corrector=Langevin(0.3, 5))
    return {
        "at the least noise": weight(model, Langevin(0.3, 500), count, down[-2:], box),
        "annealed": weight(model, Langevin(0.3, steps), count, down, noise),
        "predictor-corrector": weight(model, both, count, down, noise),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, share in weights(train(3000), 10_000).items():
        print(f"{name:20} {share:.3f} of the samples in the mode that has .800 of the data")
