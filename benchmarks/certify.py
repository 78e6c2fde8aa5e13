"""Certify every sampler on data whose answer is known exactly, and write docs/solvers.md.

    python benchmarks/certify.py            # writes docs/solvers.md
    python benchmarks/certify.py --check    # fails when the page is not what this code measures

Nothing is timed and nothing is drawn at random: the page is the same on every machine. The tests of
tests/samplers measure with the functions of this file. The rows of diffusers need it installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, StepEvent, sample
from sfumato.registry import build, names

COUNTS = (20, 40, 80, 160, 320)
"""Numbers of steps an order is measured over."""
EVEN_RATIOS: dict[str, Any] = {"name": "karras", "sigma_min": 0.02, "sigma_max": 20.0, "clean": False}
"""sigma/alpha from 20 to .02 on Karras' grid: the same levels on every process."""
DATA = GaussianMixture.gaussian(0.7, 0.5)


def exact_flow(data: GaussianMixture, x: Tensor, t: Level[float], s: Level[float]) -> Tensor:
    """Where the probability-flow ODE of one Gaussian carries x (B, D) from level t to level s."""
    mean, std = data.means[0], data.stds[0].item()
    here = math.hypot(t.alpha * std, t.sigma)
    there = math.hypot(s.alpha * std, s.sigma)
    return s.alpha * mean + (x - t.alpha * mean) * (there / here)


def flow_error(sampler: Sampler, data: GaussianMixture, process: Process, times: Tensor, y: Tensor) -> float:
    """Largest error, in x/alpha, of a deterministic walk from y (B, 1) = x/alpha at times[0]."""
    start, end = process(float(times[0])), process(float(times[-1]))
    x = y * start.alpha
    arrived = sample(sampler, ReverseProcess(data, process, source=Noise([0] * len(y))), x, times)
    return float(((arrived - exact_flow(data, x, start, end)) / end.alpha).abs().max())


def order_errors(sampler: Sampler, process: Process, counts: Sequence[int] = COUNTS) -> list[float]:
    """Errors at several numbers of steps, data N(.7, .5²), 41 starts from -40 to 40."""
    y = torch.linspace(-40, 40, 41, dtype=torch.float64)[:, None]
    grid = build("times", EVEN_RATIOS)
    return [flow_error(sampler, DATA, process, grid(process, n), y) for n in counts]


def exact_history_errors(process: Process, counts: Sequence[int] = COUNTS) -> list[float]:
    """The same for third-order DPM-Solver++ that starts with three exact states instead of lower orders."""
    sampler, data = build("sampler", {"name": "dpm_solver_pp", "order": 3}), DATA
    errors = []
    for n in counts:
        times = build("times", EVEN_RATIOS)(process, n).tolist()
        levels: list[Any] = [process(t) for t in times]
        x = levels[0].alpha * torch.linspace(-40, 40, 41, dtype=torch.float64)[:, None]
        states = [exact_flow(data, x, levels[0], level) for level in levels]
        state: Any = tuple((levels[i].log_snr, data(states[i], levels[i]).x0) for i in (1, 0))
        reverse, now = ReverseProcess(data, process), states[2]
        for t, s in pairwise(times[2:]):
            now, state = sampler.step(reverse, now, t, s, state)
        errors.append(float((now - states[-1]).abs().max() / levels[-1].alpha))
    return errors


def slopes(errors: Sequence[float]) -> list[float]:
    """Measured orders: log2 of how much each doubling of the steps gains."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


class Impulses(Noise):
    """Noise in which the k-th draw is 1 in row k + 2 and 0 elsewhere: it reads a sampler's linear map."""

    def __init__(self, rows: int) -> None:
        super().__init__([0] * rows)
        self.drawn = 0

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.drawn += 1
        impulse = torch.zeros_like(x)
        impulse[self.drawn + 1 : self.drawn + 2] = 1.0
        return impulse


class Constant(Noise):
    """Noise whose every number is the same: it reads what one step does with its draw."""

    def __init__(self, rows: int, value: float) -> None:
        super().__init__([0] * rows)
        self.value = value

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        return torch.full_like(x, self.value)


def drawn(sampler: Sampler, process: Process, times: Tensor) -> int:
    """How often a walk draws noise, which no denoiser changes."""
    source = Impulses(1)

    def silent(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Denoised(torch.zeros_like(x), torch.zeros_like(x))

    reverse = ReverseProcess(silent, process, source=source)
    sample(sampler, reverse, torch.ones(1, 1, dtype=torch.float64), times)
    return source.drawn


def laws(
    sampler: Sampler,
    denoiser: Denoiser,
    process: Process,
    times: Tensor,
    start: tuple[float, float] | None = None,
    data: GaussianMixture | None = None,
) -> Iterator[tuple[float, float, float]]:
    """(time, mean, variance) after every step, exactly, for a denoiser that is linear in x.

    With Gaussian data each walk is x_end = b + A x_start + Σ c_k z_k. Row 0 walks from 0 and gives b, row 1
    from 1 and gives A, row 2 + k sees only the k-th draw and gives c_k; so the law of the end needs no
    sampling. `start` is the mean and variance walked from; by default the exact ones of `data` at times[0].
    """
    if start is None:
        assert data is not None
        level = process(float(times[0]))
        start = level.alpha * data.means[0, 0].item(), _power(data, level)
    rows = drawn(sampler, process, times) + 2
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[1] = 1.0
    seen: list[StepEvent] = []
    reverse = ReverseProcess(denoiser, process, source=Impulses(rows))
    sample(sampler, reverse, x, times, seen.append)
    for event in seen:
        shift = event.x[0].item()
        scale, *noises = (event.x[1:, 0] - shift).tolist()
        yield event.s, shift + scale * start[0], scale**2 * start[1] + math.fsum(c * c for c in noises)


def end_law(*args: Any, **kwargs: Any) -> tuple[float, float]:
    """(mean, variance) after the last step."""
    *_, (_, mean, variance) = laws(*args, **kwargs)
    return mean, variance


def _power(data: GaussianMixture, level: Level[float]) -> float:
    return (level.alpha * data.stds[0].item()) ** 2 + level.sigma**2


SPACING_COUNTS = (50, 100, 200, 300, 400, 500, 600, 700, 1000)
SPACINGS = [("ddim", "leading"), *itertools.product(("ddim", "plms"), ("trailing", "linspace"))]


def spacing_error(sampler: str, spacing: str, steps: int) -> float:
    """Error against the exact flow to clean data: Stable Diffusion's betas, data N(.3, .5²), x_T -2 to 2."""
    data = GaussianMixture.gaussian(0.3, 0.5)
    process = build("process", {"name": "betas", "schedule": "scaled_linear"})
    times = build("times", {"name": spacing, "offset": 0} if spacing == "leading" else spacing)(
        process, steps
    )
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    arrived = sample(build("sampler", sampler), ReverseProcess(data, process), x, times)
    return float((arrived - exact_flow(data, x, process(float(times[0])), process(0.0))).abs().max())


def diffusers_spacing_error(sampler: str, spacing: str, steps: int) -> float:
    """The same measured on diffusers' scheduler of the same name, its own grid and loop."""
    import diffusers

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler: Any = {
        "ddim": lambda **grid: diffusers.DDIMScheduler(clip_sample=False, **grid),
        "plms": lambda **grid: diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, **grid),
    }[sampler](**betas, timestep_spacing=spacing)
    scheduler.alphas_cumprod = power = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(steps)
    data = GaussianMixture.gaussian(0.3, 0.5)
    levels = [Level(math.sqrt(p), math.sqrt(1 - p)) for p in power.tolist()]
    x = start = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for t in scheduler.timesteps.tolist():
        eps = (x - levels[t].alpha * data(x, levels[t]).x0) / levels[t].sigma
        x = scheduler.step(eps, t, x).prev_sample
    return float((x - exact_flow(data, start, levels[scheduler.timesteps[0]], Level(1.0, 0.0))).abs().max())


MARGINALS = [
    (0.25, 1000, 0.246125, 0.250752, 0.248498),
    (0.25, 250, 0.236016, 0.253346, 0.244304),
    (0.25, 50, 0.196420, 0.267883, 0.222704),
    (0.25, 10, 0.104222, 0.358521, 0.130763),
    (1.0, 1000, 0.991067, 0.999900, 0.996252),
    (1.0, 50, 0.855057, 0.999900, 0.928106),
    (1.0, 10, 0.520785, 0.999900, 0.663551),
]
"""(s², steps, fixed small, fixed large, DDIM η = 0): the linear recursion V' = A² V + Σ solved apart from
sfumato."""


def marginal(sampler: dict[str, Any], variance: float, steps: int) -> float:
    """Variance of the samples: data N(0, s²), DDPM's linear betas, ADM's respacing, from N(0, 1)."""
    data, process = GaussianMixture.gaussian(0.0, math.sqrt(variance)), build("process", "betas")
    times = build("times", "linspace")(process, steps)
    return end_law(build("sampler", sampler), data, process, times, (0.0, 1.0))[1]


def draws(sampler: Sampler) -> bool:
    """Whether a sampler adds noise."""
    process = build("process", "vp")
    return drawn(sampler, process, build("times", "uniform")(process, 4)) > 0


VARIANTS: list[tuple[dict[str, Any], float]] = [
    ({"name": "euler"}, 1),
    ({"name": "ddim"}, 1),
    ({"name": "dpm_solver_pp", "order": 1}, 1),
    ({"name": "heun"}, 2),
    ({"name": "heun", "straight": True}, 2),
    ({"name": "dpm2"}, 2),
    ({"name": "dpm_solver_pp"}, 2),
    ({"name": "dpm_solver_pp", "variant": "heun"}, 2),
    ({"name": "plms"}, 2),
    ({"name": "dpm_solver_pp", "order": 3}, 3),
    ({"name": "unipc", "corrector": False}, 2),
    ({"name": "unipc"}, 3),
    ({"name": "unipc", "solver": "bh1"}, 3),
    ({"name": "unipc", "order": 3}, 4),
    ({"name": "lms", "order": 2}, 2),
    ({"name": "lms"}, 4),
]
"""Samplers of the order table and the order each has in theory."""


ADAPTIVE = {"probability_flow"}
"""Samplers that choose their own steps: their error follows a tolerance, not the number of ours."""


def sampler_variants() -> list[tuple[dict[str, Any], float | None]]:
    """VARIANTS, and every deterministic sampler of the folder that they forget."""
    listed = {settings["name"] for settings, _ in VARIANTS} | ADAPTIVE
    new = [name for name in names("sampler") if name not in listed and not draws(build("sampler", name))]
    return [*VARIANTS, *(({"name": name}, None) for name in new)]


def title(settings: dict[str, Any]) -> str:
    """ddim, or dpm_solver_pp (order 3)."""
    rest = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f"`{settings['name']}`" + (f" ({rest})" if rest else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def order_section() -> str:
    """Error and order of every deterministic sampler."""
    process = build("process", "edm")
    rows = []
    for settings, _ in sampler_variants():
        errors = order_errors(build("sampler", settings), process)
        rows.append([title(settings), *(f"{e:.2e}" for e in errors), f"{slopes(errors)[-2]:.2f}"])
    errors = exact_history_errors(process)
    name = "`dpm_solver_pp` (order 3, started with exact states)"
    rows.append([name, *(f"{e:.2e}" for e in errors), f"{slopes(errors)[-2]:.2f}"])
    return table(["sampler", *(f"N = {n}" for n in COUNTS), "order"], rows)


TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)
"""Relative and absolute tolerances of adaptive solves."""


def tolerance_error(method: str, tolerance: float, process: Process) -> tuple[float, int]:
    """(error, estimates) of the order table's walk in one adaptive solve."""
    settings = {"name": "probability_flow", "rtol": tolerance, "atol": tolerance, "method": method}
    sampler, times = build("sampler", settings), build("times", EVEN_RATIOS)(process, 1).tolist()
    here, there = (process(t) for t in times)
    x = here.alpha * torch.linspace(-40, 40, 41, dtype=torch.float64)[:, None]
    arrived, used = sampler.step(ReverseProcess(DATA, process), x, *times, sampler.init(x))
    return float(((arrived - exact_flow(DATA, x, here, there)) / there.alpha).abs().max()), used


def tolerance_section() -> str:
    """Error and cost of adaptive solves."""
    rows = []
    for method in ("bosh3", "dopri5", "dopri8"):
        cells = [tolerance_error(method, tolerance, build("process", "edm")) for tolerance in TOLERANCES]
        rows.append([f"`{method}`", *(f"{error:.0e} ({used})" for error, used in cells)])
    return table(["method", *(f"{tolerance:.0e}" for tolerance in TOLERANCES)], rows)


def process_section() -> str:
    """The order at 80 to 160 steps, and how far the errors of the processes differ."""
    processes = names("process")
    rows = []
    for settings, _ in sampler_variants():
        errors = [
            order_errors(build("sampler", settings), build("process", name), (80, 160)) for name in processes
        ]
        spread = max(e[1] for e in errors) - min(e[1] for e in errors)
        rows.append(
            [
                title(settings),
                *(f"{slopes(e)[0]:.2f}" for e in errors),
                "< 1e-13" if spread < 1e-13 else f"{spread:.0e}",
            ]
        )
    return table(["sampler", *(f"`{name}`" for name in processes), "errors differ by"], rows)


def law_section() -> str:
    """Mean and standard deviation of the samples of every sampler, on every process."""
    data, rows = DATA, []
    for name in names("sampler"):
        cells = []
        for process_name in names("process"):
            process = build("process", process_name)
            times = build("times", EVEN_RATIOS)(process, 200)
            level = process(float(times[-1]))
            mean, variance = end_law(build("sampler", name), data, process, times, data=data)
            off = math.hypot(
                mean / level.alpha - 0.7, (math.sqrt(variance) - math.sqrt(_power(data, level))) / level.alpha
            )
            cells.append(f"{off:.0e}")
        rows.append([f"`{name}`", "fresh noise" if draws(build("sampler", name)) else "none", *cells])
    return table(["sampler", "noise", *(f"`{name}`" for name in names("process"))], rows)


def marginal_section() -> str:
    """Sample variances beside the independent solution."""
    kinds = [{"name": "ancestral"}, {"name": "ancestral", "variance": "large"}, {"name": "ddim"}]
    rows = []
    for variance, steps, *expected in MARGINALS:
        measured = [marginal(kind, variance, steps) for kind in kinds]
        cells = [f"{value:.6f} ({known:.6f})" for value, known in zip(measured, expected, strict=True)]
        rows.append([f"{variance:g}", str(steps), *cells])
    return table(["data variance", "steps", "small", "large", "DDIM"], rows)


def spacing_section() -> str:
    """Errors by spacing, beside diffusers where it is installed."""
    libraries = [("sfumato", spacing_error)]
    if importlib.util.find_spec("diffusers"):
        libraries.append(("diffusers", diffusers_spacing_error))
    rows = []
    for sampler, spacing in SPACINGS:
        for library, measure in libraries:
            errors = [measure(sampler, spacing, n) for n in SPACING_COUNTS]
            cells = [f"**{e:.4f}**" if e > 0.07 else f"{e:.4f}" for e in errors]
            rows.append([f"{sampler} {spacing}", library, *cells])
    return table(["sampler, spacing", "library", *map(str, SPACING_COUNTS)], rows)


PAGE = """# What the samplers really do

Every sampler is run on data whose answer is known in closed form: Gaussians, whose perfect denoiser
`sfumato.core.mixture` writes down. What is left is the sampler's own error. `python benchmarks/certify.py`
writes this page; the tests of `tests/samplers` measure with the same code and fail when a number gets worse.
All in float64; nothing is timed, nothing is random.

## Error and order

Data N(.7, .5²), sigma/alpha from 20 to .02 on the grid of `karras`, no last step to clean data. The number is
the largest error of x over 41 starts between -40 and 40 against the exact probability flow. *Read it so:*
doubling the steps divides the error by 2^order; the order is measured from 80 to 160 steps. Steps are not
estimates: `heun` and `dpm2` ask the network twice a step, all others once (`plms` twice in its first).

{orders}

`euler`, `ddim` and first-order `dpm_solver_pp` are the same step and agree to the last digit. Third-order
`dpm_solver_pp` is third-order with and without its first-order first step; k-diffusion and diffusers halve
its second derivative, which leaves their "3M" second-order (1.89 here). The corrector of `unipc` gains one
order for no further estimate.

## Steps chosen by a tolerance

The same walk as one solve of `probability_flow`, by method and tolerance (relative and absolute): the error
and, in brackets, the number of estimates. *Read it so:* the error follows the tolerance; high orders pay
where it is tight.

{tolerances}

## The path does not matter

The order on each process, walked over the same levels, measured from 80 to 160 steps. A sampler that steps
between levels, not between numbered timesteps, makes the same error on every path: the last column bounds the
difference between the errors at 160 steps.

{processes}

## Where samples end up

Distance of the samples' mean and standard deviation from the true ones after 200 steps of the same grid. With
Gaussian data a sampler is a linear map of its start and of its noise, so both are computed, not estimated;
this covers the samplers that add noise.

{laws}

## Variance of few-step ancestral sampling

Variance of the samples where N(0, s²) was learnt perfectly: DDPM's linear betas, ADM's respacing, started
from N(0, 1). In brackets the linear recursion solved independently. *Read it so:* the small variance
(`ancestral`, and `ddim` with eta 1) makes samples too alike in few steps, the large one too wild unless the
data have unit variance.

{marginals}

## Spacing

Largest error against the exact flow from the first time of the grid to clean data: betas of Stable Diffusion,
data N(.3, .5²), 41 starts between -2 and 2. sfumato steps between the times it is given, so every spacing
converges.{diffusers}

{spacings}
"""

DIFFUSERS_NOTE = """ diffusers takes t - 1000 // n for the previous timestep, whatever the next one is:
where n does not divide 1000, trailing and linspace spacing do not converge (bold; huggingface/diffusers
issues 9261, 11347, 12633)."""


def page() -> str:
    """docs/solvers.md."""
    return PAGE.format(
        orders=order_section(),
        tolerances=tolerance_section(),
        processes=process_section(),
        laws=law_section(),
        marginals=marginal_section(),
        spacings=spacing_section(),
        diffusers=DIFFUSERS_NOTE if importlib.util.find_spec("diffusers") else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="fail when the page is out of date")
    path, text = Path(__file__).parent.parent / "docs" / "solvers.md", page()
    if not parser.parse_args().check:
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{path.name} is out of date: run python benchmarks/certify.py")


if __name__ == "__main__":
    main()
