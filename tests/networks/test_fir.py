"""Smooth resampling: what the filters do, against dense matrices and the published order of steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_recipes import normal
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.networks.layers.fir import Double, Halve, HalvingConv, kernel

TAPS = [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]
"""Of sums that are powers of two, so that float32 holds the filters exactly."""

SMOOTH = (1, 3, 3, 1)


def picture(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).double()


def matrix(taps: tuple[int, ...], places: int) -> Tensor:
    """Halving along one dimension, (places / 2, places), entry by entry of its definition."""
    rows = torch.zeros(places // 2, places, dtype=torch.float64)
    for i in range(places // 2):
        for j, tap in enumerate(taps):
            place = 2 * i + j - (len(taps) - 2) // 2
            if 0 <= place < places:
                rows[i, place] += tap / sum(taps)
    return rows


def upfirdn(x: Tensor, taps: tuple[int, ...], up: int, down: int, pad: tuple[int, int], gain: int) -> Tensor:
    """As StyleGAN2 has it: zeros between values, zeros around, a convolution, every `down`-th value kept."""
    for dimension in (-1, -2):
        x = x.transpose(-1, dimension)
        spread = torch.zeros(*x.shape[:-1], x.shape[-1] * up, dtype=x.dtype)
        spread[..., ::up] = x
        padded = F.pad(spread, pad)
        count = padded.shape[-1] - len(taps) + 1
        summed = sum(
            tap / sum(taps) * padded[..., len(taps) - 1 - j : len(taps) - 1 - j + count]
            for j, tap in enumerate(taps)
        )
        x = (gain**0.5 * summed)[..., ::down].transpose(-1, dimension)
    return x


@pytest.mark.parametrize("taps", TAPS)
def test_halving_is_its_matrix_along_rows_and_columns(taps: tuple[int, ...]) -> None:
    x = picture(2, 3, 12, 8)
    expected = matrix(taps, 12) @ x @ matrix(taps, 8).T
    torch.testing.assert_close(Halve(taps)(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("taps", TAPS)
def test_doubling_is_twice_the_transposed_matrix_along_rows_and_columns(taps: tuple[int, ...]) -> None:
    x = picture(2, 3, 6, 4)
    expected = 2 * matrix(taps, 12).T @ x @ (2 * matrix(taps, 8))
    torch.testing.assert_close(Double(taps)(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("taps", TAPS)
def test_both_are_what_the_published_code_does_in_its_steps(taps: tuple[int, ...]) -> None:
    x, p = picture(2, 3, 8, 12), len(taps) - 2
    halved = upfirdn(x, taps, 1, 2, ((p + 1) // 2, p // 2), 1)
    doubled = upfirdn(x, taps, 2, 1, ((p + 1) // 2 + 1, p // 2), 4)
    torch.testing.assert_close(Halve(taps)(x), halved, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(Double(taps)(x), doubled, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("taps", TAPS)
def test_the_convolution_that_halves_pads_once_before_the_filter(taps: tuple[int, ...]) -> None:
    x, layer = picture(2, 3, 8, 12), HalvingConv(3, 5, taps).double()
    p = len(taps)
    smooth = upfirdn(x, taps, 1, 1, ((p + 1) // 2, p // 2), 1)
    expected = F.conv2d(smooth, layer.weight, layer.bias, stride=2)
    out = layer(x)
    assert out.shape == (2, 5, 4, 6)
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("taps", TAPS)
def test_doubling_is_the_adjoint_of_halving_times_four(taps: tuple[int, ...]) -> None:
    large, small = picture(1, 2, 8, 12), picture(1, 2, 4, 6, seed=1)
    a = (Halve(taps)(large) * small).sum()
    b = (large * Double(taps)(small)).sum()
    torch.testing.assert_close(4 * a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("taps", TAPS)
def test_constants_stay_away_from_the_border(taps: tuple[int, ...]) -> None:
    ones = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    margin = len(taps) // 2 - 1
    for resample in (Halve(taps), Double(taps)):
        out = resample(ones)
        inner = out[..., margin : out.shape[-2] - margin, margin : out.shape[-1] - margin]
        torch.testing.assert_close(inner, torch.ones_like(inner), rtol=1e-14, atol=0)
        # Zeros lie around the map: at the border the filter sees less of it.
        assert (out[..., 0, 0] < 1) == (margin > 0)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("frequency", [0.3, torch.pi / 2, 2.5, torch.pi])
def test_halving_damps_stripes_by_a_power_of_the_cosine(taps: tuple[int, ...], frequency: float) -> None:
    """Binomial filters of n taps: stripes of frequency w by cos(w / 2)^(n - 1), the finest altogether."""
    places, margin = torch.arange(24, dtype=torch.float64), len(taps) // 2 - 1
    stripes = torch.cos(frequency * (places - 0.5)).expand(1, 1, 24, 24)
    row = Halve(taps)(stripes)[0, 0, 6]
    expected = torch.cos(frequency * 2 * places[:12]) * torch.tensor(frequency / 2).cos() ** (len(taps) - 1)
    inner = slice(margin, 12 - margin)
    torch.testing.assert_close(row[inner], expected[inner], rtol=1e-6, atol=1e-7)


def test_halving_keeps_ramps() -> None:
    places = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    inner = Halve(SMOOTH)(places)[0, 0, 3, 1:-1]
    expected = 2 * torch.arange(1, 7, dtype=torch.float64) + 0.5
    torch.testing.assert_close(inner, expected, rtol=1e-14, atol=0)


def test_doubling_then_halving() -> None:
    """Plain, nothing happens; smooth, it is the filter's autocorrelation at even lags: 3/16, 5/8, 3/16."""
    x = picture(2, 3, 6, 8)
    torch.testing.assert_close(Halve((1, 1))(Double((1, 1))(x)), x, rtol=1e-14, atol=1e-14)
    again = Halve(SMOOTH)(Double(SMOOTH)(x))
    row = torch.tensor([3 / 16, 5 / 8, 3 / 16], dtype=torch.float64)
    weight = torch.outer(row, row).expand(3, 1, 3, 3)
    expected = F.conv2d(x, weight, groups=3)
    torch.testing.assert_close(again[..., 1:-1, 1:-1], expected, rtol=1e-13, atol=1e-13)


def test_filters_are_settings_and_not_weights() -> None:
    for layer in (Halve(SMOOTH), Double(SMOOTH), HalvingConv(2, 2, SMOOTH)):
        assert not [name for name in layer.state_dict() if "kernel" in name]
        half = layer.to(torch.bfloat16)
        assert half(torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("taps", [(), (1,), (1, 2), (1, 2, 1), (1, 3, 1, 3), (0, 0), (-1, -1)])
def test_filters_of_another_kind_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="no even and symmetric filter"):
        kernel(taps)
