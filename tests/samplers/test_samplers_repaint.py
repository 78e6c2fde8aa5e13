"""RePaint against the exact conditional law of correlated pixels, and the inner sampler it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, State, sample
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build, describe, names
from sfumato.samplers.ancestral import Ancestral
from sfumato.samplers.churn import Churn
from sfumato.samplers.ddim import DDIM
from sfumato.samplers.euler import Euler
from sfumato.samplers.repaint import RePaint
from sfumato.times.trailing import Trailing
from sfumato.times.uniform import Uniform

DATA = GaussianMixture.gaussian(0.7, 0.5)
PROCESSES = names("process")


def double(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Asked:
    """A denoiser that notes the levels it is asked at."""

    def __init__(self, denoiser: Callable[..., Denoised] = DATA) -> None:
        self.denoiser = denoiser
        self.levels: list[Level[float]] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.levels.append(level)
        return self.denoiser(x, level, condition)


class Heard(Noise):
    """Noise that notes what for and when it was drawn."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(seeds)
        self.keys: list[tuple[str, float]] = []

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.keys.append((purpose, moment))
        return super().randn_like(x, purpose, moment)


MEAN = double(0.3, -0.2)
COVARIANCE = double([1.0, 0.56], [0.56, 0.49])
"""Two pixels of correlation .8."""
SEEN = 1.5
SLOPE = (COVARIANCE[1, 0] / COVARIANCE[0, 0]).item()
EXACT = (-0.2 + SLOPE * (SEEN - 0.3), 0.49 - SLOPE * 0.56)
"""Mean and variance of the second pixel where the first is known: .472 and .1764."""


def correlated(x: Tensor, level: Level[Any], condition: Condition | None = None) -> Denoised:
    """Posterior mean of N(MEAN, COVARIANCE): m + α C (α² C + σ² I)^-1 (x - α m)."""
    alpha, sigma = level
    power = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
    return Denoised(MEAN + alpha * (x - alpha * MEAN) @ torch.linalg.solve(power, COVARIANCE))


class Impulses(Noise):
    """Noise in which the k-th number drawn is 1 in row k + 3 and 0 elsewhere."""

    def __init__(self, rows: int) -> None:
        super().__init__([0] * rows)
        self.drawn = 0

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        impulse = torch.zeros_like(x)
        for pixel in range(x.shape[1]):
            impulse[3 + self.drawn, pixel] = 1.0
            self.drawn += 1
        return impulse


def filled_in(process: Process, steps: int, jump: int, resample: int) -> tuple[float, float]:
    """Exact mean and variance of the unknown pixel: every step is an affine map of x and of what is drawn."""
    sampler = RePaint(Ancestral(), jump, resample, (double([SEEN, 0.0]), torch.tensor([1, 0])))
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    rows = 3 + 2 * (2 * jump * resample + resample - 1)
    for t, s in pairwise(Uniform()(process, steps).tolist()):
        x = torch.zeros(rows, 2, dtype=torch.float64)
        x[1, 0] = x[2, 1] = 1.0
        reverse = ReverseProcess(correlated, process, source=Impulses(rows))
        x, _ = sampler.step(reverse, x, t, s, sampler.init(x))
        linear = (x[1:] - x[0]).T
        mean = x[0] + linear[:, :2] @ mean
        covariance = linear[:, :2] @ covariance @ linear[:, :2].T + linear[:, 2:] @ linear[:, 2:].T
    assert mean[0].item() == pytest.approx(SEEN, abs=1e-15)
    assert covariance[0].abs().max() == 0
    return mean[1].item(), covariance[1, 1].item()


@pytest.mark.parametrize("process", ["flow", "vp"])
def test_resampling_finds_the_conditional_mean(process: str) -> None:
    """Plain replacement misses .18 of the .67 between the marginal and the conditional mean; each resampling
    more brings the unknown pixel closer, about as 1/r.
    """
    path = build("process", process)
    off = [abs(filled_in(path, 25, 10, resample)[0] - EXACT[0]) for resample in (1, 5, 20)]
    assert off[0] > 0.17
    assert off[1] < 0.2 * off[0]
    assert off[2] < 0.35 * off[1]
    assert off[2] < 0.012


def test_resampling_finds_the_conditional_variance() -> None:
    """What is left is DDPM's, whose few steps make samples too alike: it halves with twice the small steps.
    Plain replacement is off by a fifth, and stays so.
    """
    plain, plain_finer = (filled_in(Flow(), 25, jump, 1)[1] - EXACT[1] for jump in (10, 20))
    often, often_finer = (filled_in(Flow(), 25, jump, 20)[1] - EXACT[1] for jump in (10, 20))
    assert min(plain, plain_finer) > 0.19 * EXACT[1]
    assert plain_finer > plain
    assert abs(often) < 0.1 * EXACT[1]
    assert often_finer == pytest.approx(often / 2, rel=0.1)


@pytest.mark.parametrize("process", PROCESSES)
def test_all_kept_is_the_picture(process: str) -> None:
    path = build("process", process)
    picture = Noise([7, 8]).randn((2, 3, 4, 4), "picture")
    reverse = ReverseProcess(lambda x, level, condition: Denoised(0.3 * x), path, source=Noise([1, 2]))
    sampler = RePaint(jump=3, resample=2, known=(picture, torch.ones(1, 1, 1, 1)))
    x = reverse.prior((2, 3, 4, 4))
    assert torch.equal(sample(sampler, reverse, x, Uniform()(path, 4)), picture)


@pytest.mark.parametrize("process", ["betas", "edm", "flow", "vp"])
@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm_solver_pp", "heun", "unipc"])
def test_all_free_and_once_is_the_inner_sampler_on_the_fine_grid(name: str, process: str) -> None:
    """To the last bit, memory included."""
    path, inner, seeds = build("process", process), build("sampler", name), [3, 4]
    data = GaussianMixture.gaussian(0.7, 0.5, 2)
    sampler = RePaint(inner, 4, 1, (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)))
    times = Uniform()(path, 5)
    fine = [1.0]
    for t, s in pairwise(times.tolist()):
        fine += sampler.stretch(path, t, s)[1:]
    assert len(fine) == 21
    reverse = ReverseProcess(data, path, source=Noise(seeds))
    x = reverse.prior((2, 2)).double()
    assert torch.equal(sample(sampler, reverse, x, times), sample(inner, reverse, x, double(*fine)))


@pytest.mark.parametrize("process", PROCESSES)
def test_noising_back_up_is_exact(process: str) -> None:
    """Data at a point: DDPM's marginals are exact at any grid, and stay so however often the walk turns."""
    path, point = build("process", process), GaussianMixture.gaussian(0.7, 0.0)
    sampler = RePaint(jump=3, resample=2, known=(torch.zeros(1, 1), torch.zeros(1, 1)))
    for t, s in pairwise(Uniform()(path, 4).tolist()[:-1]):
        here, there = path(t), path(s)
        rows = 3 + 2 * 3 * 2 + 1
        x = torch.zeros(rows, 1, dtype=torch.float64)
        x[1] = 1.0
        source = Impulses(rows)
        x, _ = sampler.step(ReverseProcess(point, path, source=source), x, t, s, None)
        shift, scale, *noises = (x[:, 0] - torch.cat((double(0.0), x[:1, 0].expand(rows - 1)))).tolist()
        assert source.drawn == 13
        assert shift + scale * 0.7 * here.alpha == pytest.approx(0.7 * there.alpha, rel=1e-9)
        variance = scale**2 * here.sigma**2 + math.fsum(z * z for z in noises)
        assert variance == pytest.approx(there.sigma**2, rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_what_is_known_is_noised_as_its_level_says(process: str) -> None:
    """At the end of a step, whatever the walk did: alpha x0 + sigma z with one number z."""
    path = build("process", process)
    rows, level = 3 + 2 * 3 * 2 + 1, path(0.4)
    sampler = RePaint(jump=3, resample=2, known=(double([SEEN]), torch.ones(1, 1)))
    reverse = ReverseProcess(DATA, path, source=Impulses(rows))
    x, _ = sampler.step(reverse, torch.zeros(rows, 1, dtype=torch.float64), 0.8, 0.4, None)
    assert x[0].item() == pytest.approx(level.alpha * SEEN, rel=1e-12)
    drawn = (x - x[0]).flatten()
    assert drawn[-1].item() == pytest.approx(level.sigma, rel=1e-12)
    assert drawn[:-1].abs().max() == 0


@dataclass(frozen=True)
class Remembering(Sampler):
    """A sampler whose memory is the time its history begins at."""

    begun: list[float] = field(default_factory=list)

    def step(
        self, reverse: ReverseProcess, x: Tensor, t: float, s: float, state: State
    ) -> tuple[Tensor, State]:
        self.begun.append(t if state is None else state)
        return x, self.begun[-1]


def test_the_memory_starts_anew_where_the_walk_turns() -> None:
    """A descent goes on from one step into the next; only the way back up ends a history."""
    inner, known = Remembering(), (torch.zeros(1, 1), torch.zeros(1, 1))
    reverse = ReverseProcess(DATA, Flow(), source=Noise([1]))
    sample(RePaint(inner, 2, 2, known), reverse, torch.zeros(1, 1).double(), double(1.0, 0.6, 0.2))
    assert inner.begun == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.6, 0.6]
    inner.begun.clear()
    sample(RePaint(inner, 2, 1, known), reverse, torch.zeros(1, 1).double(), double(1.0, 0.6, 0.2))
    assert inner.begun == [1.0] * 4


def test_the_known_pixels_end_as_they_were() -> None:
    path = VP()
    picture = Noise([7]).randn((1, 3, 4, 4), "picture")
    keep = torch.zeros(1, 1, 4, 4)
    keep[..., :2] = 1
    reverse = ReverseProcess(lambda x, level, condition: Denoised(0.3 * x), path, source=Noise([1, 2]))
    sampler = RePaint(jump=3, resample=2, known=(picture, keep))
    filled = sample(sampler, reverse, reverse.prior((2, 3, 4, 4)), Uniform()(path, 4))
    kept = keep.bool().expand_as(filled)
    assert torch.equal(filled[kept], picture.expand_as(filled)[kept])
    assert not torch.equal(filled[0][~kept[0]], filled[1][~kept[1]])
    assert float((filled - picture)[~kept].abs().min()) > 0


@pytest.mark.parametrize("inner", [Ancestral(), Churn(Euler(), 0.2), Churn(DDIM(0.5), 0.4)], ids=str)
def test_no_two_draws_share_a_key(inner: Sampler) -> None:
    """Passes over the same times draw other numbers, the inner sampler's included."""
    known = (torch.zeros(1, 2), torch.tensor([[1, 0]]))
    heard = Heard([1])
    reverse = ReverseProcess(correlated, VP(), source=heard)
    sample(RePaint(inner, 3, 4, known), reverse, reverse.prior((1, 2)).double(), Uniform()(VP(), 3))
    assert len(heard.keys) > 60
    assert len(set(heard.keys)) == len(heard.keys)


def test_a_filled_in_sample_does_not_depend_on_its_batch() -> None:
    pictures = Noise([7, 8, 9]).randn((3, 2), "picture").double()
    keep, seeds = torch.tensor([True, False]), [5, 6, 2**40]

    def fill(rows: slice) -> Tensor:
        reverse = ReverseProcess(correlated, VP(), source=Noise(seeds[rows]))
        sampler = RePaint(DDIM(0.5), 3, 3, (pictures[rows], keep))
        return sample(sampler, reverse, reverse.prior((len(seeds[rows]), 2)).double(), Uniform()(VP(), 5))

    together = fill(slice(0, 3))
    for row in range(3):
        alone = fill(slice(row, row + 1))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


def test_the_schedule_of_the_paper() -> None:
    """T = 250, j = 10: 25 steps cut small are the 250, and each stretch is walked r times."""
    path = build("process", "betas")
    sampler = RePaint(resample=2, known=(torch.zeros(1, 2), torch.zeros(1, 2)))
    fine = [1.0]
    for t, s in pairwise(Trailing()(path, 25).tolist()):
        fine += sampler.stretch(path, t, s)[1:]
    assert fine == pytest.approx(Trailing()(path, 250).tolist(), abs=1e-15)
    asked = Asked(correlated)
    sample(sampler, ReverseProcess(asked, path), torch.zeros(1, 2).double(), Trailing()(path, 25))
    assert len(asked.levels) == 25 * 10 * 2


def test_no_network_is_asked_below_the_last_noisy_level() -> None:
    path = VP()
    sampler = RePaint(jump=10)
    assert sampler.stretch(path, 2.5 * path.t_min, 0.0) == pytest.approx(
        [0.0025, 0.00225, 0.002, *(0.00175, 0.0015, 0.00125, 0.001, 0.0)]
    )
    assert sampler.stretch(path, path.t_min, 0.0) == [path.t_min, 0.0]


def test_with_nothing_known_it_is_the_inner_sampler() -> None:
    reverse = ReverseProcess(correlated, VP(), source=Noise([1, 2]))
    x, times = reverse.prior((2, 2)).double(), Uniform()(VP(), 5)
    assert torch.equal(sample(RePaint(), reverse, x, times), sample(Ancestral(), reverse, x, times))


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"jump": 0}, "at least 1"),
        ({"resample": 0}, "at least 1"),
        ({"sampler": RePaint()}, "resampled already"),
        ({"known": (torch.zeros(1, 2),)}, "a picture and what to keep"),
        ({"known": (torch.zeros(1, 2), torch.full((1, 2), 0.5))}, "half kept"),
        ({"known": (torch.zeros(1, 2), torch.full((1, 2), math.nan))}, "half kept"),
    ],
)
def test_repaint_that_makes_no_sense(settings: dict, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        RePaint(**settings)


@pytest.mark.parametrize(
    "picture, keep", [((3, 2), (1, 2)), ((1, 3), (1, 2)), ((1, 2), (1, 2, 2)), ((1, 2), (1, 3))]
)
def test_pictures_that_do_not_fit(picture: tuple[int, ...], keep: tuple[int, ...]) -> None:
    asked = Asked(correlated)
    sampler = RePaint(known=(torch.zeros(picture), torch.ones(keep)))
    with pytest.raises(InvalidInput, match=r"repaint\.known: a picture or mask of shape"):
        sample(sampler, ReverseProcess(asked, VP()), torch.zeros(2, 2).double(), Uniform()(VP(), 3))
    assert not asked.levels


def test_a_picture_is_no_plain_data() -> None:
    with pytest.raises(InvalidInput, match="cannot be described"):
        describe(RePaint(known=(torch.zeros(1, 2), torch.zeros(1, 2))))
    settings = {"name": "repaint", "sampler": {"name": "ddim", "eta": 0.5}, "jump": 4}
    assert describe(RePaint(DDIM(0.5), 4)) == settings
    assert build("sampler", settings) == RePaint(DDIM(0.5), 4)
