"""Train flow matching on points, walk the model along two paths, and see that it learnt them.

python examples/points.py     # half a minute on one core
"""

import torch

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import Flow as PredictFlow
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.networks.mlp import MLP
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.samplers.dpm_solver_pp import DPMSolverPP
from sfumato.samplers.heun import Heun
from sfumato.times.karras import Karras

torch.manual_seed(0)
angles = torch.arange(8) * torch.pi / 4
ring = GaussianMixture(
    torch.stack((angles.cos(), angles.sin()), 1), torch.full((8,), 0.1), torch.full((8,), 1 / 8)
)
model = NetworkDenoiser(MLP(), Flow(), PredictFlow(), "thousand")
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for step in range(3000):
    noise = Noise(torch.arange(256), step)
    x = ring.sample(noise).float()
    level = Flow()(noise.uniform((256,), "t")).like(x)
    x_t = level.alpha * x + level.sigma * noise.randn_like(x)
    # The error of x0 over sigma² is that of the network's own output.
    loss = (((model(x_t, level, Condition()).x0 - x) / level.sigma.clamp(min=0.05)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
for path, sampler in ((Flow(), Heun(straight=True)), (VP(), DPMSolverPP())):
    reverse = ReverseProcess(model, path, source=Noise(range(2000)))
    with torch.no_grad():
        x = sample(sampler, reverse, reverse.prior((2000, 2)), Karras()(path, 20))
    near = (torch.cdist(x, ring.means.to(x)) < 0.3).float()
    share = near.mean(0)
    shares = f"{share.min():.3f} to {share.max():.3f}"
    print(f"{type(path).__name__} path: {near.sum(1).mean():.1%} on a mode, each with {shares}")
