"""Class accuracy and the intervals under every share."""

import math

import pytest
import torch
from scipy.stats import binom
from scipy.stats import t as student

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.accuracy import accuracy
from sfumato.metrics.estimate import half_width, wilson


def brightness(images):
    """Class 1 for bright pictures, 0 for dark ones."""
    bright = images.mean((1, 2, 3))
    return torch.stack([-bright, bright], 1)


def test_counts_over_batches():
    dark, bright = -torch.ones(3, 3, 4, 4), torch.ones(2, 3, 4, 4)
    found = accuracy(
        [dark, bright], [torch.tensor([0, 0, 1]), torch.tensor([1, 1])], brightness, name="light"
    )
    assert found.value == 4 / 5
    assert found.n == 5
    assert found.label == "accuracy[light]"
    assert (found.low, found.high) == wilson(4, 5)


def test_wilson_solves_its_equation():
    z = 1.959963984540054
    for successes, n in ((4, 5), (0, 7), (7, 7), (333, 1000)):
        for bound in wilson(successes, n):
            if 0 < bound < 1:
                assert abs(successes / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n))


def test_wilson_covers():
    for n, share in ((20, 0.9), (50, 0.5), (200, 0.97)):
        covered = sum(
            binom.pmf(k, n, share) for k in range(n + 1) if wilson(k, n)[0] <= share <= wilson(k, n)[1]
        )
        assert 0.92 < covered < 0.98


def test_half_width_is_students():
    for freedom in (5, 19, 100):
        assert half_width(1.0, freedom) == pytest.approx(student.ppf(0.975, freedom), rel=0.01)
    assert half_width(2.0) == pytest.approx(2 * 1.959963984540054)


def test_mistakes_are_named():
    images = torch.ones(2, 3, 4, 4)
    with pytest.raises(InvalidInput, match="no pictures"):
        accuracy([], [], brightness)
    with pytest.raises(InvalidInput, match="numbers of batches"):
        accuracy([images, images], [torch.tensor([0, 1])], brightness)
    with pytest.raises(InvalidInput, match="classes 0 to 1"):
        accuracy([images], [torch.tensor([0, 2])], brightness)
    with pytest.raises(InvalidInput, match="2 pictures"):
        accuracy([images], [torch.tensor([0])], brightness)
    with pytest.raises(NotFinite):
        accuracy([images * torch.nan], [torch.tensor([0, 1])], brightness)


def test_a_fault_of_the_classifier_is_not_blamed_on_the_batches():
    def broken(images):
        raise ValueError("weights are on another device")

    with pytest.raises(ValueError, match="another device"):
        accuracy([torch.ones(2, 3, 4, 4)], [torch.tensor([0, 1])], broken)
