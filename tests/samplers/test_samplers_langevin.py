"""Langevin steps: by norms, as correctors of any sampler, and the weights of modes they find."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.processes.flow import Flow
from sfumato.processes.ncsn import NCSN, langevin_snr
from sfumato.processes.ve import VE
from sfumato.processes.vp import VP
from sfumato.registry import build, names
from sfumato.samplers.langevin import Langevin
from sfumato.samplers.predictor_corrector import PredictorCorrector
from sfumato.times.trailing import Trailing
from sfumato.times.uniform import Uniform

DATA = GaussianMixture.gaussian(0.0, 0.5)
THREE = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.4, 1.1], [1.5, -0.6]], dtype=torch.float64),
    torch.tensor([0.3, 0.1, 0.45], dtype=torch.float64),
    torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
)


# ---- steps by norms ----


def averaged(x: Tensor, score: Tensor, z: Tensor, snr: float) -> Tensor:
    """The published corrector: norms averaged over the batch."""
    quotient = z.norm(dim=1).mean() / score.norm(dim=1).mean()
    size = 2 * (snr * quotient) ** 2
    return x + size * score + torch.sqrt(2 * size) * z


def test_norms_of_each_sample_are_nearly_those_of_the_batch() -> None:
    """Alone, the published step to the last digit. In a batch, the root mean square difference of x falls as
    1/sqrt(dim) and is .5 % for pictures as large as CIFAR-10's, whose variance differs by .01 %.
    """
    process, t, count, off = VE(), 0.6, 128, {}
    level, source = process(t), Noise(torch.arange(count))
    for dim in (48, 3072):
        data = GaussianMixture.gaussian(0.2, 0.4, dim)
        x = 0.2 + math.hypot(0.4, level.sigma) * source.randn((count, dim), "x").double()
        reverse = ReverseProcess(data, process, source=source)
        ours = Langevin(0.16, 1, "norms").correct(reverse, x, t)
        score, z = data.score(x, level), reverse.randn_like(x, t, "langevin 0")
        alone = averaged(x[17:18], score[17:18], z[17:18], 0.16)
        torch.testing.assert_close(ours[17:18], alone, rtol=1e-10, atol=1e-10)
        theirs = averaged(x, score, z, 0.16)
        off[dim] = float((ours - theirs).norm() / theirs.norm())
    assert off[3072] == pytest.approx(0.0055, rel=0.15)
    assert off[48] / off[3072] == pytest.approx(8, rel=0.15)
    assert float((ours - 0.2).var() / (theirs - 0.2).var()) == pytest.approx(1, abs=3e-4)


def test_a_vanished_score_takes_no_step() -> None:
    reverse = ReverseProcess(DATA, VP(), source=Noise([1, 2]))
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    stepped = Langevin(0.16, 1, "norms").correct(reverse, x, 0.5)
    assert stepped[0].item() == 0
    assert math.isfinite(stepped[1].item())
    assert stepped[1].item() != 1


# ---- predictor and corrector ----


SELF_CORRECTING = {"unipc"}


@pytest.mark.parametrize("name", sorted(set(names("sampler")) - SELF_CORRECTING))
def test_a_corrector_of_no_length_is_the_predictor_alone(name: str) -> None:
    """Any sampler, its memory included."""
    path, source = VP(), Noise([4, 9])
    x = Noise([1, 2]).randn((2, 2), "x").double()
    reverse, times = ReverseProcess(THREE, path, source=source), Uniform()(path, 7)
    alone = sample(build("sampler", name), reverse, x, times)
    corrected = sample(PredictorCorrector(build("sampler", name), Langevin(1e-11, 1)), reverse, x, times)
    torch.testing.assert_close(corrected, alone, rtol=0, atol=1e-6)


def test_the_corrector_comes_first_and_draws_its_own_noise() -> None:
    path, source = VP(), Noise([4, 9])
    x = Noise([1, 2]).randn((2, 2), "x").double()
    reverse = ReverseProcess(THREE, path, source=source)
    sampler = PredictorCorrector(Langevin(0.3, 2), Langevin(0.2, 1))
    ours, _ = sampler.step(reverse, x, 0.6, 0.5, None)
    by_hand = Langevin(0.2, 1).correct(ReverseProcess(THREE, path, source=source, turn="corrector "), x, 0.6)
    by_hand, _ = Langevin(0.3, 2).step(reverse, by_hand, 0.6, 0.5, None)
    assert torch.equal(ours, by_hand)
    again, _ = Langevin(0.3, 2).step(reverse, Langevin(0.2, 1).correct(reverse, x, 0.6), 0.6, 0.5, None)
    assert not torch.allclose(ours, again)


def test_correctors_mend_a_coarse_predictor(certify: ModuleType) -> None:
    """Fifteen steps of DDIM leave too little variance; the more corrector steps, the nearer it is."""
    path, data = VP(), GaussianMixture.gaussian(0.7, 0.5)
    times = Uniform(clean=False)(path, 15)
    level = path(float(times[-1]))
    right = (0.5 * level.alpha) ** 2 + level.sigma**2
    alone = build("sampler", "ddim")
    walkers = [alone, *(PredictorCorrector(alone, Langevin(0.16, steps)) for steps in (20, 100))]
    laws = [certify.end_law(walker, data, path, times, data=data) for walker in walkers]
    off = [abs(variance / right - 1) for _, variance in laws]
    assert off[1] < off[0]
    assert off[2] < 0.6 * off[0]


def test_unipc_brings_a_corrector_of_its_own() -> None:
    with pytest.raises(InvalidInput, match="undo the Langevin steps"):
        PredictorCorrector(build("sampler", "unipc"))
    PredictorCorrector(build("sampler", {"name": "unipc", "corrector": False}))


@pytest.mark.parametrize(
    "wrong", [{"snr": 0.0}, {"snr": -1.0}, {"snr": math.inf}, {"snr": math.nan}, {"steps": 0}], ids=str
)
def test_langevin_steps_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="langevin"):
        Langevin(**wrong)


# ---- whole modes ----


def carried(certify: ModuleType, step: Callable[[Noise, Tensor], Tensor], edges: Tensor) -> Tensor:
    """How a step with one draw carries probability between the cells of a grid, (to, from): no sampling."""
    x = (edges[1:, None] + edges[:-1, None]) / 2
    mean = step(certify.Constant(len(x), 0.0), x)
    std = float((step(certify.Constant(len(x), 1.0), x) - mean)[0])
    return torch.special.ndtr((edges[:, None] - mean[:, 0]) / std).diff(dim=0)


def cells(width: float, reach: float) -> tuple[Tensor, Tensor]:
    count = round(reach / width)
    edges = torch.arange(-count, count + 1, dtype=torch.float64) * width
    return edges, (edges[1:] + edges[:-1]) / 2


PAIR = torch.tensor([0.8, 0.2], dtype=torch.float64)
# The toy of NCSN along the line through its modes at (5, 5) and (-5, -5).
TOY = GaussianMixture(
    torch.tensor([[50.0**0.5], [-(50.0**0.5)]], dtype=torch.float64), torch.zeros(2).double(), PAIR
)


def weight_of_the_large_mode(
    certify: ModuleType, process: NCSN, walker: Langevin, levels: list[int]
) -> float:
    """Its share after Langevin steps at these levels from a uniform start, by exact propagation."""
    edges, middle = cells(0.2, 100.0)
    mass = (middle.abs() < 8 * math.sqrt(2)).double()
    mass = mass / mass.sum()
    single = Langevin(walker.snr, 1)
    for k in levels:
        t = (k + 1) / process.steps
        kernel = carried(
            certify, lambda z, x, t=t: single.correct(ReverseProcess(TOY, process, source=z), x, t), edges
        )
        for _ in range(walker.steps):
            mass = kernel @ mass
    return float(mass[middle > 0].sum())


def test_langevin_alone_gets_the_weights_of_modes_wrong(certify: ModuleType) -> None:
    """Figure 3 of NCSN: modes of 4:1, where the noise no longer joins them, share a uniform start evenly
    whatever their weight; annealed from sigma 20 to 1 (ten levels of 100 steps) they come out nearly right,
    and finer annealing comes within 1 %.
    """
    process, snr = NCSN(1.0, 20.0, 10), math.sqrt(0.05 / 2)
    alone = weight_of_the_large_mode(certify, process, Langevin(snr, 1000), [0])
    assert alone == pytest.approx(0.5, abs=0.02)
    assert weight_of_the_large_mode(
        certify, process, Langevin(snr, 100), [*range(9, -1, -1)]
    ) == pytest.approx(0.8, abs=0.02)
    fine = NCSN(1.0, 20.0, 40)
    assert weight_of_the_large_mode(certify, fine, Langevin(0.2, 40), [*range(39, -1, -1)]) == pytest.approx(
        0.8, abs=0.01
    )


@pytest.mark.parametrize("sampler", ["euler_maruyama", "reverse_diffusion"])
@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_modes_keep_their_weights(certify: ModuleType, process: Process, sampler: str) -> None:
    """4:1 within 1 %, by exact propagation to where the modes no longer exchange anything."""
    data = GaussianMixture(
        torch.tensor([[3.0], [-3.0]], dtype=torch.float64), torch.full((2,), 0.3).double(), PAIR
    )
    edges, middle = cells(0.04, 9.0)
    cdf = torch.special.ndtr(edges / process.prior_std)
    mass = cdf.diff() / (cdf[-1] - cdf[0])
    walker = build("sampler", sampler)
    for t, s in pairwise(torch.linspace(1, 0.15, 200, dtype=torch.float64).tolist()):
        mass = (
            carried(
                certify,
                lambda z, x, t=t, s=s: walker.step(ReverseProcess(data, process, source=z), x, t, s, None)[0],
                edges,
            )
            @ mass
        )
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    assert float(mass[middle > 0].sum()) == pytest.approx(0.8, abs=0.01)


def test_predictor_and_corrector_keep_them_too() -> None:
    """In samples, from a prior that knows nothing of the modes: three standard errors are .0095."""
    count, process = 16000, NCSN(0.5, 100.0, 50)
    reverse = ReverseProcess(TOY, process, source=Noise(torch.arange(count)))
    x = sample(
        PredictorCorrector(corrector=Langevin(langevin_snr(process.ratio, 1), 1)),
        reverse,
        reverse.prior((count, 1)).double(),
        Trailing()(process, 50),
    )
    assert float((x > 0).double().mean()) == pytest.approx(0.8, abs=0.01)
    assert float((x.abs() - math.sqrt(50)).abs().max()) < 1e-6
