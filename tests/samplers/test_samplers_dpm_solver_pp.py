"""DPM-Solver++ in third order: where it is taken, and where steps are too long for it."""

import math

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.edm import EDM
from sfumato.samplers.dpm_solver_pp import DPMSolverPP


def walked(order: int, h: float, variant: str = "heun") -> Tensor:
    """The end of six steps of equal length h in log-SNR from sigma 40, on data that bend."""
    process = EDM()
    levels = [40.0 * math.exp(-h * n) for n in range(7)]
    times = torch.tensor([process.time(-math.log(sigma)) for sigma in levels], dtype=torch.float64)

    def denoiser(x: Tensor, level, condition: Condition) -> Denoised:
        return Denoised(torch.tanh(x / (1 + level.sigma)))

    reverse = ReverseProcess(denoiser, process, Condition(vector=torch.zeros(2, 1)), Noise([0, 1]))
    x = torch.tensor([[30.0], [-11.0]], dtype=torch.float64)
    return sample(DPMSolverPP(order=order, variant=variant), reverse, x, times)


@pytest.mark.parametrize("h, same", [(0.5, False), (0.79, False), (0.81, True), (1.5, True)])
def test_long_steps_are_taken_in_second_order(h: float, same: bool) -> None:
    third, second = walked(3, h), walked(2, h)
    assert torch.allclose(third, second, rtol=1e-12, atol=1e-12) == same
