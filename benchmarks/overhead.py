"""What a sampling step costs beside the network, side by side with diffusers.

The network is a stub that returns a tensor it was given, so that all of the time is overhead: levels,
coefficients, the sampler's arithmetic and the loop. sfumato and diffusers alternate in one process; medians
over repeats.

    python benchmarks/overhead.py            # table to docs/overhead.md
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.noise import Noise
from sfumato.core.prediction import Noise as PredictNoise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.betas import Betas
from sfumato.samplers.ddim import DDIM
from sfumato.samplers.dpm_solver_pp import DPMSolverPP
from sfumato.times.trailing import Trailing


class Stub(nn.Module):
    """A network that has thought already."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.output


def ours(sampler: DDIM | DPMSolverPP, x: Tensor, steps: int) -> Callable[[], Tensor]:
    """One walk of sfumato."""
    process = Betas("scaled_linear")
    denoiser = NetworkDenoiser(Stub(torch.randn_like(x)), process, PredictNoise())

    def walk() -> Tensor:
        reverse = ReverseProcess(denoiser, process, source=Noise(list(range(len(x)))))
        return sample(sampler, reverse, x, Trailing()(process, steps))

    return walk


def theirs(name: str, x: Tensor, steps: int) -> Callable[[], Tensor]:
    """One walk of diffusers, as its pipelines loop."""
    import diffusers

    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = getattr(diffusers, name)(**settings, timestep_spacing="trailing")
    output = torch.randn_like(x)

    def walk() -> Tensor:
        scheduler.set_timesteps(steps)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(output, t, scheduler.scale_model_input(y, t)).prev_sample
        return y

    return walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "overhead.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(1, 4, 64, 64)
    pairs = {
        "DDIM": (ours(DDIM(), x, arguments.steps), theirs("DDIMScheduler", x, arguments.steps)),
        "DPM-Solver++ 2M": (
            ours(DPMSolverPP(), x, arguments.steps),
            theirs("DPMSolverMultistepScheduler", x, arguments.steps),
        ),
    }
    rows = []
    with torch.inference_mode():
        for name, walks in pairs.items():
            times: tuple[list[float], list[float]] = ([], [])
            for repeat in range(arguments.repeats + 3):
                for side, walk in enumerate(walks):
                    start = time.perf_counter()
                    walk()
                    if repeat >= 3:
                        times[side].append((time.perf_counter() - start) / arguments.steps * 1e6)
            us, them = (statistics.median(side) for side in times)
            spread = " / ".join(f"{min(side):.0f}-{max(side):.0f}" for side in times)
            rows.append(f"| {name} | {us:.0f} | {them:.0f} | {them / us:.1f} x | {spread} |")
    table = "\n".join(rows)
    page = f"""# What a step costs beside the network

Microseconds a step with a network that returns at once, one picture of 4 x 64 x 64, {arguments.steps} steps,
one thread; sfumato and diffusers alternate in one process, medians of {arguments.repeats} walks, whole walks
counted (grid and set-up included). Written by `python benchmarks/overhead.py` on {platform.machine()}, torch
{torch.__version__}.

| sampler | sfumato, µs | diffusers, µs | ratio | least-most, µs |
|---|---|---|---|---|
{table}
"""
    arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
