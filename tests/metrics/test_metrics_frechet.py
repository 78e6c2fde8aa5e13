"""Fréchet distance: closed forms, references, the bias law, intervals."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.frechet import Moments, frechet, frechet_distance
from sfumato.metrics.frechet_infinite import frechet_infinite


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(mean, covariance, count=1000):
    """Moments whose mean and covariance are exactly these."""
    return Moments(count, count * mean, (count - 1) * covariance + count * torch.outer(mean, mean))


class Flat(torch.nn.Module):
    """What torchmetrics calls a feature network: the identity."""

    num_features = 0

    def forward(self, x):
        return x


@pytest.mark.parametrize(("smallest", "tolerance"), [(1e-3, 1e-11), (0, 1e-7)])
def test_commuting_covariances_in_closed_form(smallest, tolerance):
    rotation = torch.linalg.qr(normal(6, 6)).Q
    first, second = (
        torch.tensor([1, 2, 3, 4, 5, 6.0]).double(),
        torch.tensor([2, 2, smallest, 1, 7, 4]).double(),
    )
    shift = normal(6, seed=1)
    found = frechet_distance(
        exact(torch.zeros(6).double(), rotation @ first.diag() @ rotation.T),
        exact(shift, rotation @ second.diag() @ rotation.T),
    )
    wanted = shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert found == pytest.approx(float(wanted), rel=tolerance)


def test_general_covariances_agree_with_scipy_sqrtm():
    a, b = normal(300, 12) @ normal(12, 12, seed=1), normal(250, 12, seed=2) @ normal(12, 12, seed=3) + 0.3
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet(a, b, resamples=0).value == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(200, 16), (150, 100)])
def test_torchmetrics_agrees(rows, columns):
    a, b = normal(rows, columns).abs(), 1.2 * normal(rows + 30, columns, seed=1).abs() + 0.1
    network = Flat()
    network.num_features = columns
    reference = FrechetInceptionDistance(feature=network, normalize=True).set_dtype(torch.float64)
    reference.update(b, real=True)
    reference.update(a, real=False)
    assert frechet(a, b, resamples=0).value == pytest.approx(float(reference.compute()), rel=1e-6)


def test_fewer_pictures_than_features_agrees_with_the_moments_and_is_marked():
    a, b = normal(20, 64), normal(25, 64, seed=1) * 2
    found = frechet(a, b, resamples=0)
    assert found.value == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-6)
    assert found.singular
    assert "equal N" in found.notes[0]
    assert not frechet(normal(80, 64), normal(80, 64), resamples=0).singular


def test_distance_to_itself_is_zero_even_without_full_rank():
    for rows in (20, 500):
        a = normal(rows, 64) * torch.logspace(0, -6, 64).double()
        assert abs(frechet(a, a, resamples=0).value) < 1e-9
        assert abs(frechet_distance(Moments.of(a), Moments.of(a))) < 1e-9


def test_invariant_under_rotation_and_common_shift_and_symmetric():
    a, b = normal(100, 8), normal(90, 8, seed=1) * 1.5
    rotation = torch.linalg.qr(normal(8, 8, seed=2)).Q
    value = frechet(a, b, resamples=0).value
    assert frechet(a @ rotation + 5, b @ rotation + 5, resamples=0).value == pytest.approx(value, rel=1e-10)
    assert frechet(b, a, resamples=0).value == pytest.approx(value, rel=1e-12)


def test_parts_add_up_to_the_whole():
    rows = normal(101, 9).float()
    whole = Moments.of(rows)
    merged = Moments.empty(9)
    for part in rows.split(17):
        merged = merged + Moments.of(part)
    assert merged.count == whole.count == 101
    torch.testing.assert_close(merged.total, whole.total, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(merged.outer, whole.outer, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(whole.covariance, rows.double().T.cov())


def test_small_sample_bias_follows_the_law():
    d, n = 8, 400
    target = exact(torch.zeros(d).double(), torch.eye(d).double())
    one = [frechet_distance(Moments.of(normal(n, d, seed=s)), target) for s in range(300)]
    two = [frechet(normal(n, d, seed=s), normal(n, d, seed=1000 + s), resamples=0).value for s in range(300)]
    assert np.mean(one) == pytest.approx(d / n + d * (d + 1) / (4 * n), rel=0.05)
    assert np.mean(two) == pytest.approx(2 * d / n + d * (d + 1) / (2 * n), rel=0.05)


def test_extrapolation_removes_the_bias():
    d, n, shift = 8, 400, 0.5
    plain, infinite = [], []
    for seed in range(60):
        a, b = normal(n, d, seed=seed), normal(n, d, seed=1000 + seed)
        a[:, 0] += shift
        plain.append(frechet(a, b, resamples=0).value)
        infinite.append(frechet_infinite(a, b, resamples=0).value)
    error = np.std(infinite) / math.sqrt(60)
    assert abs(np.mean(infinite) - shift**2) < 3 * error
    assert np.mean(plain) - shift**2 > 6 * error


def test_interval_covers_the_mean_of_fresh_draws():
    d, n, shift, runs = 6, 150, 0.4, 120
    found = []
    for seed in range(runs):
        a, b = normal(n, d, seed=seed), normal(n, d, seed=5000 + seed)
        a[:, 0] += shift
        found.append(frechet(a, b, seed=seed))
    expected = np.mean([estimate.value for estimate in found])
    covered = sum(estimate.low <= expected <= estimate.high for estimate in found)
    # Binomial(120, 0.95) leaves 104 to 119 with probability 0.999; a bootstrap may be a little off.
    assert covered >= 102
    width = np.mean([estimate.high - estimate.low for estimate in found])
    assert width < 3 * 2 * 1.96 * np.std([estimate.value for estimate in found])


def test_extrapolated_interval_brackets_its_value_and_repeats():
    a, b = normal(200, 4), normal(200, 4, seed=1) + 0.2
    first, second = frechet_infinite(a, b, seed=3), frechet_infinite(a, b, seed=3)
    assert first == second
    assert first.low < first.value < first.high
    assert first.label == "frechet_infinite[features]"


def test_mistakes_are_named():
    a = normal(10, 4)
    with pytest.raises(InvalidInput, match="too few"):
        frechet(a[:1], a)
    with pytest.raises(InvalidInput, match="do not compare"):
        frechet(a, normal(10, 5))
    with pytest.raises(InvalidInput, match=r"\(N, D\)"):
        frechet(a[0], a)
    broken = a.clone()
    broken[7, 2] = torch.nan
    with pytest.raises(NotFinite, match=r"real: .*picture 7"):
        frechet(a, broken)
    with pytest.raises(InvalidInput, match="2 draws"):
        frechet(a, a, resamples=1)
    with pytest.raises(InvalidInput, match="too few"):
        frechet_infinite(a, a, pieces=6)
    with pytest.raises(InvalidInput, match="2 pictures or more"):
        frechet_distance(Moments.empty(4), Moments.of(a))
