"""Grids of times: the published tables, and the laws all of them obey."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput
from sfumato.core.process import Process
from sfumato.processes.betas import Betas
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build, names
from sfumato.times.align_your_steps import AlignYourSteps
from sfumato.times.exponential import Exponential
from sfumato.times.karras import Karras
from sfumato.times.leading import Leading
from sfumato.times.linspace import Linspace
from sfumato.times.log_snr import LogSNR
from sfumato.times.shifted import Shifted
from sfumato.times.trailing import Trailing
from sfumato.times.uniform import Uniform

SD = Betas("scaled_linear")


def indices(times: torch.Tensor, process: Process = SD) -> list[int]:
    """Indices of the noisy times."""
    found = times[times > 0] * process.steps - 1
    assert (found - found.round()).abs().max() < 1e-9
    return [int(i) for i in found.round()]


def ratios(times: torch.Tensor, process: Process) -> list[float]:
    return process(times[times > 0]).ratio.tolist()


def test_leading_is_the_grid_of_stable_diffusion() -> None:
    times = Leading()(SD, 50)
    assert indices(times) == list(range(981, 0, -20))
    assert times[-1] == 0
    assert indices(Leading(clean=False)(SD, 50)) == [*range(981, 0, -20), 0]
    assert indices(Leading(offset=0)(SD, 25)) == list(range(960, -1, -40))
    assert indices(Leading(offset=0)(SD, 600)) == list(range(599, -1, -1))


def test_trailing() -> None:
    assert indices(Trailing()(SD, 50)) == list(range(999, 0, -20))
    assert indices(Trailing()(SD, 3)) == [999, 666, 332]
    assert indices(Trailing()(SD, 1000)) == list(range(999, -1, -1))


def test_linspace() -> None:
    assert indices(Linspace()(SD, 50))[:3] == [999, 979, 958]
    assert indices(Linspace()(SD, 50))[-1] == 0
    assert indices(Linspace(endpoint=False)(SD, 20))[:4] == [999, 949, 899, 849]
    assert len(indices(Linspace(endpoint=False)(SD, 20))) == 20
    fractional = Linspace(rounded=False)(SD, 50)[:3] * 1000 - 1
    assert fractional.tolist() == pytest.approx([999, 999 * 48 / 49, 999 * 47 / 49])


def adm(steps: int, count: int) -> list[int]:
    """ADM's respacing of one section: strides of (T - 1) / (n - 1), rounded as they add up."""
    stride, place, found = (steps - 1) / (count - 1), 0.0, []
    for _ in range(count):
        found.append(round(place))
        place += stride
    return found[::-1]


@pytest.mark.parametrize("count", [10, 25, 50, 100, 250, 1000])
def test_linspace_is_the_respacing_of_adm(count: int) -> None:
    assert indices(Linspace()(Betas(), count)) == adm(1000, count)
    if count == 250:
        assert indices(Linspace()(Betas(), count))[::-1][:3] == [0, 4, 8]
        assert indices(Linspace()(Betas(), count))[:2] == [999, 995]


KARRAS_18 = (
    80, 57.58598, 40.78557, 28.37458, 19.35245, 12.91008, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817,
    0.58535, 0.29644, 0.13952, 0.05995, 0.02293, 0.00753, 0.002,
)  # fmt: skip
KARRAS_SD = (14.61464, 9.10293, 5.47839, 3.1686, 1.74942, 0.91407, 0.44692, 0.2014, 0.08191, 0.02917)


def test_karras() -> None:
    assert ratios(Karras()(EDM(), 18), EDM()) == pytest.approx(KARRAS_18, abs=6e-6)
    assert ratios(Karras()(SD, 10), SD) == pytest.approx(KARRAS_SD, abs=6e-6)
    assert ratios(Karras(sigma_min=0.002, sigma_max=80)(VP(), 18), VP()) == pytest.approx(KARRAS_18, abs=6e-6)
    open_ended = Karras(clean=False)(EDM(), 17)
    assert ratios(open_ended, EDM()) == pytest.approx(KARRAS_18, abs=6e-6)


def test_exponential() -> None:
    found = ratios(Exponential()(EDM(), 5), EDM())
    assert found == pytest.approx([80 * (0.002 / 80) ** (i / 4) for i in range(5)], rel=1e-9)
    bent = ratios(Exponential(rho=2.0)(EDM(), 5), EDM())
    assert bent == pytest.approx([0.002 * 40000 ** ((1 - i / 4) ** 2) for i in range(5)], rel=1e-9)


def test_log_snr_is_even_in_log_snr() -> None:
    for process in (SD, EDM(), VP()):
        times = LogSNR()(process, 12)
        steps = process(times).log_snr.diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0)
        assert times[-1].item() == pytest.approx(process.t_min, rel=1e-6)
        assert LogSNR(clean=True)(process, 12)[-1] == 0


TABLES = {
    "sd15": (SD, [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
    "sdxl": (SD, [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
}


@pytest.mark.parametrize("family", TABLES)
def test_align_your_steps(family: str) -> None:
    """The published levels are those of the published indices."""
    process, published = TABLES[family]
    times = AlignYourSteps(family)(process, 10)  # type: ignore[arg-type]
    assert len(times) == 11
    assert times[-1] == 0
    assert (times[:-1] * 1000 - 1).tolist() == pytest.approx(published, abs=1)


def test_align_your_steps_between_its_levels() -> None:
    wide = EDM(0.002, 700.0)
    ten, nineteen = (ratios(AlignYourSteps("svd")(wide, n), wide) for n in (10, 19))
    assert nineteen[::2] == pytest.approx(ten, rel=1e-9)
    assert nineteen[1] == pytest.approx(math.sqrt(ten[0] * ten[1]), rel=1e-9)
    assert ten == pytest.approx((700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034))


def test_the_shift_of_stable_diffusion_3() -> None:
    """s' = 3 s / (1 + 2 s) on even times. Published: 1, .8999, .7502, .5014, .0089 for diffusers' shift of an
    already shifted range; ours shifts once.
    """
    expected = [3 * s / (1 + 2 * s) for s in (1, 0.8, 0.6, 0.4, 0.2, 0)]
    assert Shifted(3.0)(Flow(), 5).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [0.5, 2.0, 3.0])
def test_a_shift_multiplies_the_ratio(k: float) -> None:
    plain, shifted = Uniform()(Flow(), 10), Shifted(k)(Flow(), 10)
    inside = slice(1, -1)
    torch.testing.assert_close(Flow()(shifted[inside]).ratio, k * Flow()(plain[inside]).ratio)


@pytest.mark.parametrize("name", names("process"))
def test_a_shift_of_one_changes_nothing(name: str) -> None:
    process = build("process", name)
    grid = Uniform(clean=False)
    torch.testing.assert_close(Shifted(1.0, grid)(process, 20), grid(process, 20), rtol=1e-7, atol=1e-9)


def test_two_shifts_are_one() -> None:
    twice = Shifted(2.0, Shifted(1.5))(Flow(), 7)
    torch.testing.assert_close(twice, Shifted(3.0)(Flow(), 7))


def test_uniform() -> None:
    assert Uniform()(VP(), 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert Uniform(clean=False)(VP(), 4)[-1] == VP().t_min


@pytest.mark.parametrize("process", names("process"))
@pytest.mark.parametrize("name", names("times"))
@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 1000))
def test_times_decrease_from_noise_to_data(name: str, process: str, steps: int) -> None:
    path, grid = build("process", process), build("times", name)
    if name == "leading" and steps > path.steps / 2 and path.steps // steps * (steps - 1) + 1 >= path.steps:
        # Its offset of 1 has no room left.
        with pytest.raises(InvalidInput, match="past the last"):
            grid(path, steps)
        return
    times = grid(path, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] <= 1
    assert times[-1] >= 0
    assert (times[1:] < times[:-1]).all()
    assert path(times[1]).log_snr > -math.inf


@pytest.mark.parametrize("process", names("process"))
@pytest.mark.parametrize("name", names("times"))
def test_grids_reach_both_ends(name: str, process: str) -> None:
    """The first time is the noisiest where the grid visits it; the last is clean data or the least noise."""
    path = build("process", process)
    times = build("times", name)(path, 25)
    if name not in {"leading", "align_your_steps"}:
        assert path(times[0]).log_snr <= path.log_snr_range()[0] + 1e-6
    assert times[-1] == 0 or path(times[-1]).log_snr == pytest.approx(path.log_snr_range()[1], abs=1e-6)


@pytest.mark.parametrize("name", names("times"))
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_no_grid(name: str, steps: int) -> None:
    with pytest.raises(InvalidInput, match="step"):
        build("times", name)(SD, steps)


@pytest.mark.parametrize("name", ["leading", "linspace", "trailing"])
def test_more_steps_than_indices_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="1000"):
        build("times", name)(SD, 1001)


@pytest.mark.parametrize(
    "grid",
    [Karras(sigma_min=5.0, sigma_max=1.0), Exponential(sigma_min=-1.0), Leading(offset=30)],
    ids=repr,
)
def test_ranges_that_are_none(grid: Karras) -> None:
    with pytest.raises(InvalidInput):
        grid(SD, 50)


def test_leading_cannot_visit_index_0_twice() -> None:
    with pytest.raises(InvalidInput, match="index 0"):
        Leading(offset=0, clean=False)(SD, 50)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_is_positive(shift: float) -> None:
    with pytest.raises(InvalidInput, match=r"shifted\.shift"):
        Shifted(shift)


def test_a_walk_that_starts_at_vanished_signal_starts_at_1() -> None:
    for process in (Flow(), Betas("scaled_linear", zero_terminal_snr=True)):
        for grid in (Karras(), LogSNR(), Exponential()):
            assert grid(process, 10)[0] == 1
