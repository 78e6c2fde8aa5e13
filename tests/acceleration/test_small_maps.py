"""Convolutions of small maps by shifts: the formula's sums, forth and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sfumato.acceleration.small_maps import convolved, gradient_of_weight, gradient_of_x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (2, 2), (4, 4), (5, 3)])
def test_sums_are_those_of_the_formula(height: int, width: int, last: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, height, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, generator=draw, dtype=torch.float64)
    bias = torch.randn(5, generator=draw, dtype=torch.float64)
    gradient = torch.randn(2, 5, height, width, generator=draw, dtype=torch.float64)
    if last:
        x, weight, gradient = (
            each.contiguous(memory_format=torch.channels_last) for each in (x, weight, gradient)
        )
    told = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(convolved(x, weight, bias), told)
    torch.testing.assert_close(convolved(x, weight), told - bias[:, None, None])
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, [5], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    torch.testing.assert_close(gradient_of_x(gradient, weight), of_x)
    torch.testing.assert_close(gradient_of_weight(x, gradient), of_weight)
    for made in (convolved(x, weight), gradient_of_x(gradient, weight), gradient_of_weight(x, gradient)):
        assert made.is_contiguous(memory_format=torch.channels_last)
