"""Precision, recall, density, coverage on sets whose answers can be counted by hand."""

import numpy as np
import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.metrics import precision_recall as module
from sfumato.metrics.precision_recall import precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(*args, **kwargs):
    return [estimate.value for estimate in precision_recall(*args, **kwargs)]


def test_by_hand_on_a_line():
    real = torch.tensor([[0.0], [1], [2], [10]])
    fake = torch.tensor([[0.5], [3.0], [30], [31], [32]])
    # k = 1: real radii 1, 1, 1, 8; balls [-1, 1] [0, 2] [1, 3] [2, 18]: 0.5 and 3 are inside.
    # fake radii 2.5, 2.5, 1, 1, 1; balls [-2, 3] [.5, 5.5] ...: 0, 1, 2 are inside.
    # 0.5 lies in 2 balls, 3 in 2; every real ball holds 0.5 or 3.
    precision, recall, density, coverage = values(fake, real, k=1, k_coverage=1)
    assert (precision, recall, density, coverage) == (2 / 5, 3 / 4, 4 / 5, 1.0)


def test_equal_sets_are_perfect_and_the_edge_counts():
    rows = normal(200, 5)
    precision, recall, density, coverage = values(rows, rows[torch.randperm(200)])
    assert precision == recall == coverage == 1
    # A ball holds its centre and its k neighbours, the last exactly on the edge.
    assert density == pytest.approx(6 / 5)


def test_repeated_pictures_are_inside_themselves():
    rows = normal(10, 50).repeat_interleave(7, 0) * 100
    assert values(rows, rows)[:2] == [1, 1]


def test_distant_sets_share_nothing():
    assert values(normal(50, 4), normal(50, 4, seed=1) + 100) == [0, 0, 0, 0]


def test_dropped_mode_costs_recall_and_stray_mode_costs_precision():
    left, right = normal(400, 3), normal(400, 3, seed=1) + 50
    both = torch.cat([left[:200], right[:200]])
    fresh = torch.cat([left[200:], right[200:]])
    precision, recall, _, coverage = values(left, both)
    assert precision > 0.85
    assert 0.4 < recall < 0.51
    assert coverage < 0.51
    precision, recall, _, _ = values(fresh, left)
    assert 0.4 < precision < 0.51
    assert recall > 0.8


def test_density_and_coverage_of_equal_distributions():
    # Naeem et al.: E density = 1; E coverage = 1 - (N-1)…(N-k) / (2N-1)…(2N-k), near 1 - 2⁻ᵏ.
    n, k = 300, 5
    found = [values(normal(n, 8, seed=s), normal(n, 8, seed=500 + s), k_coverage=k) for s in range(20)]
    _, _, density, coverage = np.mean(found, axis=0)
    miss = np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - miss, abs=0.01)


def test_blocks_change_nothing(monkeypatch):
    a, b = normal(90, 6), normal(110, 6, seed=1) * 1.2
    whole = precision_recall(a, b)
    monkeypatch.setattr(module, "_BLOCK", 700)
    assert precision_recall(a, b) == whole
    assert "equal numbers" in whole.recall.notes[0]


def test_precision_interval_covers_precision_against_the_same_reals():
    real = normal(200, 3, seed=1)
    truth = precision_recall(1.5 * normal(4000, 3, seed=2), real).precision.value
    found = [precision_recall(1.5 * normal(200, 3, seed=10 + s), real).precision for s in range(100)]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    assert covered >= 0.89
    assert np.mean([e.high - e.low for e in found]) == pytest.approx(
        2 * 1.96 * (truth * (1 - truth) / 200) ** 0.5, rel=0.1
    )


def test_mistakes_are_named():
    with pytest.raises(InvalidInput, match="6 or more"):
        precision_recall(normal(5, 2), normal(50, 2))
    with pytest.raises(InvalidInput, match="k ≥ 1"):
        precision_recall(normal(9, 2), normal(9, 2), k=0)
