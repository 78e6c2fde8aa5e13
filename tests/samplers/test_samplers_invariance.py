"""The same samples on every path, for every prediction, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS, Prediction
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, StepEvent, sample
from sfumato.processes.flow import Flow
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, names

THREE = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.4, 1.1], [1.5, -0.6]], dtype=torch.float64),
    torch.tensor([0.3, 0.1, 0.45], dtype=torch.float64),
    torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
)
RATIOS = {"name": "karras", "sigma_min": 0.02, "sigma_max": 30.0}


class ByDraw(Noise):
    """Noise keyed by how many draws came before, for times differ between paths that share their levels."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(seeds)
        self.drawn = 0

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.drawn += 1
        return super().randn_like(x, purpose, self.drawn)


VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in names("sampler")),
    {"name": "ddim", "eta": 0.6},
    {"name": "euler_ancestral", "eta": 0.5, "noise_scale": 1.1},
    {"name": "dpm_solver_pp", "order": 3},
    {"name": "dpm_solver_pp", "eta": 1.0},
    {"name": "dpm_solver_pp", "eta": 1.0, "order": 3},
    {"name": "churn", "noise_scale": 1.003},
    {"name": "churn", "sampler": {"name": "dpm2"}},
    {"name": "churn", "sampler": {"name": "euler"}},
    {"name": "unipc", "order": 3},
    {"name": "unipc", "solver": "bh1", "corrector": False},
    {"name": "langevin", "rule": "norms"},
    {"name": "predictor_corrector", "predictor": {"name": "lms"}},
    {"name": "predictor_corrector", "predictor": {"name": "langevin"}},
]
BOUND: list[dict[str, Any]] = [
    {"name": "ancestral", "variance": "large"},
    {"name": "euler_maruyama"},
    {"name": "reverse_diffusion"},
]
"""Bound to their path by definition: β = sigma_t² - (alpha_t/alpha_s)² sigma_s² is another noise on another
path (it scales with alpha_t, the step with alpha_s), and a step in t another step."""


def end(sampler: Sampler, denoiser: Any, process: Process, seeds: list[int], grid: Any = RATIOS) -> Tensor:
    times = build("times", grid)(process, 12)
    start = process(float(times[0]))
    x = 30 * start.alpha * Noise(seeds).randn((len(seeds), 2), "x").double()
    return sample(sampler, ReverseProcess(denoiser, process, source=ByDraw(seeds)), x, times)


PATHS = [VP(), VE(0.01, 50.0), Flow()]


@pytest.mark.parametrize("settings", [v for v in VARIANTS if v not in BOUND], ids=str)
def test_the_path_does_not_matter(settings: dict) -> None:
    sampler, seeds = build("sampler", settings), [1, 2, 3]
    # The way to clean data is solved down to the last noisy level of the path, and paths differ in that.
    grid = {**RATIOS, "clean": settings["name"] != "probability_flow"}
    expected, *others = (
        end(sampler, THREE, path, seeds, grid) / path(float(build("times", grid)(path, 12)[-1])).alpha
        for path in PATHS
    )
    assert expected.std() > 0.1
    for other in others:
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", BOUND, ids=str)
def test_what_is_bound_to_its_path(settings: dict) -> None:
    """The exceptions above, shown: were one false the list should not hold it."""
    vp, ve = (end(build("sampler", settings), THREE, process, [1, 2]) for process in PATHS[:2])
    assert (vp - ve).abs().max() > 1e-3


class Oracle(nn.Module):
    """A network that says exactly what a prediction would have a perfect network say about THREE."""

    def __init__(self, process: Process, prediction: Prediction) -> None:
        super().__init__()
        self.process, self.prediction = process, prediction

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        level = self.process(self.process.time(-time[:1].double()))
        level = Level(level.alpha[:, None], level.sigma[:, None])
        x = x / self.prediction.scale(level)
        skip, out = self.prediction.coefficients(level)
        return (THREE(x, level).x0 - skip * x) / out


@pytest.mark.parametrize("grid", names("times"))
@pytest.mark.parametrize("process", names("process"))
def test_every_sampler_process_prediction_and_grid(process: str, grid: str) -> None:
    """The whole product, by registry: through a network of any prediction the samples are the oracle's own.

    Networks are told the time in float32, which moves levels by 1e-7 and x0 = x - sigma eps by 1e-5 at sigma
    80, and high-order samplers on five uneven steps magnify that.
    """
    path = build("process", process)
    targets = {name: PREDICTIONS[name]() for name in sorted(PREDICTIONS)}
    models = [NetworkDenoiser(Oracle(path, t), path, t, "log_sigma") for t in targets.values()]

    def side_by_side(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        """Of rows in parts the first is the oracle's, and each other is asked of its own model."""
        first, *others = x.chunk(1 + len(models))
        own = [model(part, level, condition).x0 for model, part in zip(models, others, strict=True)]
        return Denoised(torch.cat((THREE(first, level).x0, *own)))

    times = build("times", grid)(path, 5)
    # Where alpha is 0, noise and score say nothing and the oracle of another level is asked instead.
    times = times[1:] if path(float(times[0])).alpha == 0 else times
    seeds = [1, 2] * (1 + len(models))
    x = path(float(times[0])).norm * Noise(seeds).randn((len(seeds), 2), "x").double()
    for name in names("sampler"):
        made = sample(
            build("sampler", name), ReverseProcess(side_by_side, path, source=Noise(seeds)), x, times
        )
        exact, *ours = made.chunk(1 + len(models))
        scale = float(exact.abs().max())
        for prediction, each in zip(targets, ours, strict=True):
            assert float((each - exact).abs().max()) < 1e-3 * max(1.0, scale), (prediction, name)


@pytest.mark.parametrize("trained", ["vp", "flow", "edm", "betas"])
def test_a_network_walks_other_paths(trained: str) -> None:
    """Trained on one process, walked along three: the same samples."""
    own = build("process", trained)
    target = PREDICTIONS["velocity"]()
    model = NetworkDenoiser(Oracle(own, target), own, target, "log_sigma")
    sampler = build("sampler", "dpm_solver_pp")
    walks = [end(sampler, model, process, [5, 6]) for process in PATHS]
    for other in walks[1:]:
        torch.testing.assert_close(other, walks[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(walks[0], end(sampler, THREE, VP(), [5, 6]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_a_sample_does_not_depend_on_its_batch(process: str, settings: dict) -> None:
    path, seeds = build("process", process), [9, 2**40, 0, 7]
    times = build("times", "uniform")(path, 8)
    draws: list[Tensor] = []

    class Heard(Noise):
        def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
            draws.append(super().randn_like(x, purpose, moment))
            return draws[-1]

    def walk(chosen: list[int]) -> tuple[Tensor, list[Tensor]]:
        draws.clear()
        reverse = ReverseProcess(THREE, path, source=Heard(chosen))
        x = reverse.prior((len(chosen), 2)).double()
        return sample(build("sampler", settings), reverse, x, times), list(draws)

    together, noises = walk(seeds)
    # Steps chosen by a tolerance are shared, and the result is the same to that tolerance (1e-5 a solve).
    near = 1e-12 if settings["name"] != "probability_flow" else 5e-5
    for row, seed in enumerate(seeds):
        alone, own = walk([seed])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=near, atol=near)
        assert len(own) == len(noises)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(noises, own, strict=True))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_noise_is_fresh_at_every_step(settings: dict) -> None:
    """Two draws of one walk never share a key."""
    keys: list[tuple[str, float]] = []

    class Heard(Noise):
        def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
            keys.append((purpose, moment))
            return super().randn_like(x, purpose, moment)

    reverse = ReverseProcess(THREE, VP(), source=Heard([1]))
    x = reverse.prior((1, 2)).double()
    sample(build("sampler", settings), reverse, x, build("times", "uniform")(VP(), 8))
    assert len(set(keys)) == len(keys)
    assert "prior" not in {purpose for purpose, _ in keys}


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_x_is_kept(name: str, dtype: torch.dtype) -> None:
    reverse = ReverseProcess(THREE, VP(), source=Noise([1]))
    x = reverse.prior((1, 2)).to(dtype)
    assert sample(build("sampler", name), reverse, x, build("times", "uniform")(VP(), 5)).dtype == dtype


@pytest.mark.parametrize("name", names("sampler"))
def test_one_sampler_serves_many_walks(name: str) -> None:
    """History is returned, not stored: walks interleaved step by step are the walks alone."""
    sampler, times = build("sampler", name), build("times", "uniform")(VP(), 6).tolist()
    walks = [Noise([seed]).randn((1, 2), "x").double() for seed in (1, 2)]
    grid = torch.tensor(times, dtype=torch.float64)
    alone = [sample(sampler, ReverseProcess(THREE, VP(), source=Noise([4])), x, grid) for x in walks]
    states = [sampler.init(x) for x in walks]
    for t, s in pairwise(times):
        for i, x in enumerate(walks):
            walks[i], states[i] = sampler.step(
                ReverseProcess(THREE, VP(), source=Noise([4])), x, t, s, states[i]
            )
    for x, expected in zip(walks, alone, strict=True):
        assert torch.equal(x, expected)


def test_every_step_is_observed() -> None:
    seen: list[StepEvent] = []
    times = build("times", "uniform")(VP(), 5)
    end_x = sample(
        build("sampler", "ddim"), ReverseProcess(THREE, VP()), torch.zeros(1, 2).double(), times, seen.append
    )
    assert [(e.index, e.steps) for e in seen] == [(i, 5) for i in range(5)]
    assert [e.t for e in seen] == times[:-1].tolist()
    assert [e.s for e in seen] == times[1:].tolist()
    assert torch.equal(seen[-1].x, end_x)


def test_observing_may_stop_the_walk() -> None:
    def stop(event: StepEvent) -> None:
        if event.index == 2:
            raise KeyboardInterrupt

    times = build("times", "uniform")(VP(), 5)
    with pytest.raises(KeyboardInterrupt):
        sample(build("sampler", "ddim"), ReverseProcess(THREE, VP()), torch.zeros(1, 2).double(), times, stop)


@pytest.mark.parametrize("times", [[1.0], [], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.0, float("nan")]])
def test_times_that_do_not_decrease(times: list[float]) -> None:
    with pytest.raises(InvalidInput, match="times"):
        sample(build("sampler", "ddim"), ReverseProcess(THREE, VP()), torch.zeros(1, 2), torch.tensor(times))


@pytest.mark.parametrize(
    "wrong",
    [{"name": "dpm_solver_pp", "order": 4}, {"name": "unipc", "order": 0}, {"name": "lms", "order": 5}],
)
def test_orders_that_are_none(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match="order"):
        build("sampler", wrong)


def test_hooks_are_planned_by_level() -> None:
    from sfumato.core.hooks import Hooks

    hooks, seen = Hooks(), []

    def denoiser(x: Tensor, level: Level[Any], condition: Condition) -> Any:
        seen.append((level.ratio, condition.hooks))
        return THREE(x, level)

    plan: Callable[[Level[float]], Hooks | None] = lambda level: hooks if level.ratio > 1 else None  # noqa: E731
    times = build("times", "uniform")(VP(), 6)
    sample(
        build("sampler", "ddim"), ReverseProcess(denoiser, VP(), plan=plan), torch.zeros(1, 2).double(), times
    )
    assert {h is hooks for r, h in seen if r > 1} == {True}
    assert {h for r, h in seen if r <= 1} == {None}
