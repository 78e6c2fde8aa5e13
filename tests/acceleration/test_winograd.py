"""Winograd's convolution is the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.acceleration import winograd as module
from sfumato.acceleration.winograd import transformed, winograd

pytestmark = pytest.mark.skipif(not module.able(), reason="no compiler")


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    # Registers hold eight of float64: whole ones, and what is left.
    widths=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    batch=st.integers(1, 3),
    biased=st.booleans(),
)
def test_it_is_the_convolution(
    sides: tuple[int, int], widths: tuple[int, int], batch: int, biased: bool
) -> None:
    """In float64 to rounding, at any height and width."""
    x, weight = normal(batch, widths[0], *sides), normal(widths[1], widths[0], 3, 3, seed=2)
    bias = normal(widths[1], seed=3) if biased else None
    made = winograd(x, transformed(weight), bias)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, F.conv2d(x, weight, bias, padding=1), rtol=1e-11, atol=1e-11)


def test_the_layout_given_says_nothing() -> None:
    """Of maps and of kernels; nor do large kernels, whose memory is asked for otherwise."""
    x, weight = normal(1, 500, 9, 5, dtype=torch.float32), normal(500, 500, 3, 3, seed=2, dtype=torch.float32)
    last = [each.to(memory_format=torch.channels_last) for each in (x, weight)]
    kernels = [transformed(each) for each in (weight, last[1])]
    assert kernels[0].nbytes > module._OWN
    assert torch.equal(winograd(x, kernels[0]), winograd(last[0], kernels[1]))
    expected = F.conv2d(x, weight, padding=1)
    assert (winograd(x, kernels[0]) - expected).abs().max() < 2e-5 * expected.abs().max()
    back = torch.nn.grad.conv2d_input(x.shape, weight, expected, padding=1)
    for each in (weight, last[1]):
        made = winograd(expected, transformed(each, turned=True))
        assert (made - back).abs().max() < 2e-5 * back.abs().max()


def test_bands_of_tiles_are_one_map(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(2, 3, 21, 10), normal(4, 3, 3, 3, seed=2)
    whole = winograd(x, transformed(weight))
    # Of four tiles each, the last of two.
    monkeypatch.setattr(module, "_BAND", 1)
    monkeypatch.setattr(module, "_LEAST", 4)
    torch.testing.assert_close(winograd(x, transformed(weight)), whole, rtol=1e-12, atol=1e-12)


def test_float32_is_off_by_little_more_than_the_direct_sum() -> None:
    """At a width of Stable Diffusion's: 1e-4 of the largest is what `lossless` promises, a fifth is kept.

    In which order sums are taken is the machine's: 8e-6 with AVX2, 1.2e-5 with AVX-512.
    """
    x, weight = normal(1, 640, 16, 16), normal(640, 640, 3, 3, seed=2) / 76
    exact = F.conv2d(x, weight, padding=1)
    made = winograd(x.float(), transformed(weight.float()))
    assert (made - exact).abs().max() < 2e-5 * exact.abs().max()
