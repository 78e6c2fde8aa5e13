"""Restore what was hidden: sample the data that agree with a measurement, by a model never trained for it.

python examples/inverse_problem.py                # points, half a minute on one core
python examples/inverse_problem.py MODEL [OUT]    # pictures of a trained model, their right half hidden
"""

import sys

import torch

from sfumato.checkpoints.load import load
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.operators import Mask
from sfumato.core.prediction import Flow as PredictFlow
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.generation.images import to_image
from sfumato.guidance.inverse_problem import InverseProblem
from sfumato.networks.mlp import MLP
from sfumato.processes.flow import Flow
from sfumato.samplers.dpm_solver_pp import DPMSolverPP
from sfumato.times.karras import Karras


def walk(denoiser, process, condition, seeds, shape):
    """One sample a seed; a guided denoiser is a denoiser like any other."""
    reverse = ReverseProcess(denoiser, process, condition, Noise(seeds))
    return sample(DPMSolverPP(), reverse, reverse.prior((len(seeds), *shape)), Karras()(process, 40))


def train():
    """Flow matching on eight points of a ring, as in examples/points.py."""
    torch.manual_seed(0)
    angles = torch.arange(8) * torch.pi / 4
    means = torch.stack((angles.cos(), angles.sin()), 1)
    ring = GaussianMixture(means, torch.full((8,), 0.1), torch.full((8,), 1 / 8))
    model = NetworkDenoiser(MLP(), Flow(), PredictFlow(), "thousand")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(1500):
        noise = Noise(torch.arange(256), step)
        x = ring.sample(noise).float()
        level = Flow()(noise.uniform((256,), "t")).like(x)
        x_t = level.alpha * x + level.sigma * noise.randn_like(x)
        loss = (((model(x_t, level, Condition()).x0 - x) / level.sigma.clamp(min=0.05)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


if len(sys.argv) < 2:
    model, first = train(), torch.tensor([[0.7071]])
    told = InverseProblem(lambda x: x[:, :1], first, "moments", noise_std=0.05, iterations=1)
    with torch.inference_mode():
        x = walk(told(model, Condition()), Flow(), Condition(), range(1000), (2,))
    upper = (x[:, 1] > 0).float().mean()
    print(f"told that a point's first coordinate is .71: {x[:, 0].mean():.2f} ± {x[:, 0].std():.2f}")
    print(f"its second: {upper:.0%} at {x[x[:, 1] > 0, 1].mean():.2f}, else {x[x[:, 1] < 0, 1].mean():.2f}")
else:
    model = load(sys.argv[1])
    model.denoiser.eval()
    shape, count = model.space.shape(*model.card["size"]), 6
    left = Mask((0.0, 0.0, 1.0, 0.5))
    with torch.inference_mode():
        condition = model.conditioner(count)
        truth = walk(model.denoiser, model.process, model.conditioner(1), [0], shape)
        told = InverseProblem(left, left(truth), "pigdm", noise_std=0.02)
        guided = told(model.denoiser, model.conditioner.null(condition))
        x = walk(guided, model.process, condition, range(1, count + 1), shape)
    rows = model.space.decode(torch.cat((truth, left(truth), x))).float()
    to_image(torch.cat(list(rows), dim=2)).save(out := (sys.argv[2:] or ["restored.png"])[0])
    error = (left(x) - left(truth)).square().mean().sqrt()
    print(f"{out}: a picture, what was kept of it, and {count} restored ones, {error:.3f} from what was kept")
