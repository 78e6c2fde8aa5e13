"""Windows: where they agree the result is that of the whole, without seams; maps are cut as x is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.windows import Windows
from sfumato.processes.vp import VP
from sfumato.registry import build

NULL, LEVEL = Condition(), Level(0.8, 0.6)


class Pixels:
    """Every pixel is N(m, .5²) by itself, m told by a map (or a number): no pixel needs its neighbours."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.calls.append(tuple(x.shape))
        mean: Any = 0.3
        if condition.channels is not None:
            mean = condition.channels
        if condition.vector is not None:
            mean = mean + condition.vector[:, :, None, None]
        for each in condition.residuals:
            mean = mean + each.repeat_interleave(2, 2).repeat_interleave(2, 3)
        total = level.alpha**2 * 0.25 + level.sigma**2
        x0 = (level.alpha * 0.25 * x + level.sigma**2 * mean) / total
        return Denoised(x0, (x * mean).square())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return Noise(range(seed, seed + shape[0])).randn(shape, "x").double()


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("stride", [1, 4, 6, 8])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_windows_that_agree_are_the_whole(size: int, stride: int, batch: int) -> None:
    x = noise(2, 3, 20, 31)
    told = Condition(channels=noise(2, 1, 20, 31, seed=5), vector=noise(2, 1, seed=9))
    whole = Pixels()(x, LEVEL, told)
    parts = Windows(size, stride, batch)(Pixels(), NULL)(x, LEVEL, told)
    torch.testing.assert_close(parts.x0, whole.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.variance, whole.variance, rtol=0, atol=1e-12)


def test_a_walk_of_windows_is_the_walk_of_the_whole() -> None:
    path, times = VP(), build("times", "uniform")(VP(), 12)
    x = noise(1, 3, 24, 24)
    ends = []
    for denoiser in (Pixels(), Windows(8, 4)(Pixels(), NULL)):
        ends.append(sample(build("sampler", "heun"), ReverseProcess(denoiser, path), x, times))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-10)


def test_no_seams_where_windows_disagree() -> None:
    """Each window says a constant of its own: the mixture never jumps as windows without overlap would."""

    class Constant(Pixels):
        count = 0

        def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            self.count += 1
            return Denoised(torch.full_like(x, float(self.count % 2)))

    x = torch.zeros(1, 1, 32, 64, dtype=torch.float64)
    said = Windows(32, 16, 1)(Constant(), NULL)(x, LEVEL, NULL).x0
    bare = Windows(32, 32, 1)(Constant(), NULL)(x, LEVEL, NULL).x0
    assert bare.diff(dim=3).abs().max() == 1
    assert said.diff(dim=3).abs().max() < 0.15
    assert said.diff(dim=2).abs().max() < 1e-12
    assert said.min() >= 0
    assert said.max() <= 1


def test_levels_of_each_row_maps_of_half_the_size_and_nulls_of_one_row() -> None:
    x = noise(2, 1, 16, 24)
    level = Level(
        torch.tensor([0.9, 0.5]).double().view(2, 1, 1, 1), torch.tensor([0.2, 0.7]).view(2, 1, 1, 1)
    )
    told = Condition(channels=noise(2, 1, 16, 24, seed=3), residuals=(noise(2, 1, 8, 12, seed=7),))
    whole, parts = (each(x, level, told).x0 for each in (Pixels(), Windows(8, 4)(Pixels(), NULL)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    one = told[0]
    whole, parts = (each(x, level, one.tile(2)).x0 for each in (Pixels(), Windows(8, 4)(Pixels(), NULL)))
    alike = Windows(8, 4)(Pixels(), NULL)(x, level, one).x0
    torch.testing.assert_close(alike, whole, rtol=0, atol=1e-12)
    odd = Condition(residuals=(noise(2, 1, 5, 7),))
    with pytest.raises(InvalidInput, match="cannot be cut into windows"):
        Windows(8, 4)(Pixels(), NULL)(x, level, odd)


def test_guidance_around_windows_is_guidance_of_the_whole() -> None:
    x, null = noise(2, 1, 20, 20), Condition(channels=torch.zeros(1, 1, 20, 20).double())
    told = Condition(channels=noise(2, 1, 20, 20, seed=3))
    whole = ClassifierFree(3.0)(Pixels(), null)(x, LEVEL, told).x0
    parts = ClassifierFree(3.0)(Windows(8, 4)(Pixels(), null), null)(x, LEVEL, told).x0
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_drafts_are_cut_as_channels_are() -> None:
    x, told = noise(2, 1, 20, 20), noise(2, 1, 20, 20, seed=3)

    def by_draft(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        return Pixels()(x, level, Condition(channels=condition.draft))

    parts = Windows(8, 4)(by_draft, NULL)(x, LEVEL, Condition(draft=told)).x0
    torch.testing.assert_close(parts, Pixels()(x, LEVEL, Condition(channels=told)).x0, rtol=0, atol=1e-12)


def test_no_call_is_larger_than_the_windows_asked_for_and_every_place_is_seen() -> None:
    plain = Pixels()
    Windows(8, 4, 3)(plain, NULL)(noise(2, 1, 24, 40), LEVEL, NULL)
    assert max(call[0] for call in plain.calls) == 6
    assert {call[2:] for call in plain.calls} == {(8, 8)}
    for length in range(8, 60):
        starts = Windows(8, 6).starts(length)
        assert starts[0] == 0
        assert starts[-1] == length - 8
        assert all(0 < b - a <= 6 for a, b in pairwise(starts))


def test_no_larger_than_a_window_nothing_changes() -> None:
    plain, x = Pixels(), noise(1, 1, 8, 6)
    assert torch.equal(Windows(8, 4)(plain, NULL)(x, LEVEL, NULL).x0, Pixels()(x, LEVEL, NULL).x0)
    assert plain.calls == [(1, 1, 8, 6)]
    Windows(8, 4)(plain, NULL)(noise(1, 1, 20, 6), LEVEL, NULL)
    assert plain.calls[-1][2:] == (8, 6)


@pytest.mark.parametrize("settings", [{"size": 0}, {"stride": 65}, {"stride": 0}, {"batch": 0}])
def test_settings_that_are_none(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Windows(**settings)
