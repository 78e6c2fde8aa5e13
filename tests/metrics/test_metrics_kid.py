"""Kernel distance: the reference, the formula written out, unbiasedness, intervals."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from sfumato.core.errors import InvalidInput
from sfumato.metrics import kid as module
from sfumato.metrics.kid import kid, squared_mmd


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Flat(torch.nn.Module):
    num_features = 8

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance")
@pytest.mark.parametrize(("subset", "subsets"), [(60, 1), (25, 12)])
def test_torchmetrics_agrees_subset_for_subset(subset, subsets):
    a, b = normal(60, 8), normal(60, 8, seed=1) + 0.4
    reference = KernelInceptionDistance(feature=Flat(), subsets=subsets, subset_size=subset)
    reference.update(b, real=True)
    reference.update(a, real=False)
    torch.manual_seed(7)
    mean, std = reference.compute()
    found = kid(a, b, subset=subset, subsets=subsets, seed=7)
    assert found.value == pytest.approx(float(mean), rel=1e-6)
    if subset < 60:
        assert found.std == pytest.approx(float(std), rel=1e-6)
    else:
        assert found.std is None


def test_the_formula_written_out_for_unequal_sets():
    x, y = normal(4, 3), normal(5, 3, seed=1)

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(kernel(a, b) for a in x for b in y) / 20
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    x, y = normal(50, 4), normal(70, 4, seed=1)
    whole = squared_mmd(x, y)
    monkeypatch.setattr(module, "_BLOCK", 200)
    assert squared_mmd(x, y) == pytest.approx(whole, rel=1e-12)


def test_unbiased_at_ten_pictures():
    # One feature, x ~ N(0, 1) and y ~ N(c, 1): the mean of the kernel is a polynomial of the moments.
    c = 0.5

    def mean_kernel(m1, m2):
        # E (ab + 1)³ = E a³ E b³ + 3 E a² E b² + 3 E a E b + 1 for independent N(m, 1).
        third = [m**3 + 3 * m for m in (m1, m2)]
        return third[0] * third[1] + 3 * (m1**2 + 1) * (m2**2 + 1) + 3 * m1 * m2 + 1

    truth = mean_kernel(0, 0) + mean_kernel(c, c) - 2 * mean_kernel(0, c)
    for shift, wanted in ((0.0, 0.0), (c, truth)):
        draws = [
            squared_mmd(normal(10, 1, seed=s), normal(10, 1, seed=9000 + s) + shift) for s in range(4000)
        ]
        error = np.std(draws) / np.sqrt(len(draws))
        assert abs(np.mean(draws) - wanted) < 3.5 * error
        assert min(draws) < 0


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_interval_covers_the_truth(shift):
    n, d, runs = 80, 4, 300
    found = []
    for seed in range(runs):
        a, b = normal(n, d, seed=seed), normal(n, d, seed=7000 + seed)
        a[:, 0] += shift
        found.append(kid(a, b))
    truth = 0.0 if shift == 0 else np.mean([estimate.value for estimate in found])
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    assert covered >= 0.91
    width = np.mean([estimate.high - estimate.low for estimate in found])
    # The jackknife doubles the variance of a degenerate statistic, no more.
    assert width < 1.8 * 2 * 1.96 * np.std([estimate.value for estimate in found])


def test_large_sets_take_the_same_subsets_and_a_scaled_error(monkeypatch):
    a, b = normal(400, 4), normal(390, 4, seed=1) + 0.3
    for subset in (50, 1000):
        whole = kid(a, b, subset=subset, subsets=20)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_TABLE_ROWS", 200)
            part = kid(a, b, subset=subset, subsets=20)
        assert part.value == pytest.approx(whole.value, rel=1e-12)
        assert part.std == (None if subset == 1000 else pytest.approx(whole.std, rel=1e-12))
        assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=0.3)


def test_jackknife_is_what_leaving_out_gives():
    x, y = normal(7, 3), normal(9, 3, seed=1) + 0.5
    found = kid(x, y)
    variance = 0
    for rows, other in ((x, y), (y, x)):
        left = [squared_mmd(torch.cat([rows[:i], rows[i + 1 :]]), other) for i in range(len(rows))]
        variance += (len(rows) - 1) * np.var(left)
    assert found.high - found.value == pytest.approx(1.959963984540054 * variance**0.5, rel=1e-9)


def test_mistakes_are_named():
    a = normal(10, 4)
    with pytest.raises(InvalidInput, match="too few"):
        kid(a[:2], a)
    with pytest.raises(InvalidInput, match="subset"):
        kid(a, a, subset=1)
