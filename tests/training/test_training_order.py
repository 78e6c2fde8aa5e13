"""The order of data: every item equally often, shuffled, a pure function of seed and step; loading it."""

import threading
import time
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput
from sfumato.training.loader import Loader
from sfumato.training.order import DataOrder


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**63 - 1), st.integers(1, 3))
def test_every_item_is_seen_equally_often_in_batches_of_one_bucket(size, batch, seed, buckets):
    order = DataOrder(size, batch, seed, lambda index: str(index % buckets))
    steps = order.first_step(batch)
    counts = Counter()
    for step in range(steps):
        drawn = order(step)
        assert len(drawn.indices) == len(drawn.seeds) == batch
        assert len({index % buckets for index in drawn.indices}) == 1
        assert order.first_step(drawn.epoch) <= step < order.first_step(drawn.epoch + 1)
        counts.update(drawn.indices)
    # After as many epochs as a batch has rows, batches and rounds through the data come out even.
    assert all(counts[index] == batch for index in range(size))


def test_any_step_can_be_asked_for_at_any_time():
    forwards = [DataOrder(23, 4, 7)(step) for step in range(40)]
    order = DataOrder(23, 4, 7)
    assert [order(step) for step in reversed(range(40))] == forwards[::-1]
    assert DataOrder(23, 4, 8)(0) != forwards[0]


def test_epochs_are_shuffled_anew_and_items_get_new_seeds():
    order = DataOrder(1000, 1000, 3)
    first, second = order(0), order(1)
    assert sorted(first.indices) == sorted(second.indices) == list(range(1000))
    assert first.indices != second.indices
    assert sum(a == b for a, b in zip(first.indices, second.indices, strict=True)) < 8
    assert len({*first.seeds, *second.seeds}) == 2000
    assert all(0 <= seed < 2**63 for seed in first.seeds)
    by_item = dict(zip(first.indices, first.seeds, strict=True))
    again = dict(zip(second.indices, second.seeds, strict=True))
    assert all(by_item[i] != again[i] for i in range(1000))


class Data:
    """Numbers that take a while to load, some of them broken."""

    def __init__(self, size, bad=(), wait=0.0):
        self.size, self.bad, self.wait = size, bad, wait
        self.threads = set()

    def __len__(self):
        return self.size

    def load(self, index, seed):
        time.sleep(self.wait * (seed % 3))
        self.threads.add(threading.current_thread().name)
        if index in self.bad:
            raise OSError("cannot identify image file")
        return SimpleNamespace(index=index, seed=seed)


def first(data, workers, share=None, steps=12, pieces=2, start=0):
    loader = Loader(data, DataOrder(len(data), 6, 5), list, workers, share)
    batches = loader.batches(start, pieces)
    out = [[(i.index, i.seed) for part in parts for i in part] for parts in islice(batches, steps)]
    batches.close()
    return out, loader


def test_workers_change_nothing_but_who_loads():
    plain, _ = first(Data(20), 0)
    data = Data(20, wait=0.002)
    assert first(data, 3)[0] == plain
    assert all(name.startswith("sfumato-load") for name in data.threads)
    assert first(Data(20), 2, start=5, steps=4)[0] == plain[5:9]
    halves = [first(Data(20), 0, share, pieces=1)[0] for share in (slice(0, 3), slice(3, 6))]
    assert [a + b for a, b in zip(*halves, strict=True)] == plain
    drawn = DataOrder(20, 6, 5)(3)
    assert plain[3] == list(zip(drawn.indices, drawn.seeds, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_items_are_replaced_alike_and_others_stay(workers):
    plain, _ = first(Data(40), 0)
    mended, loader = first(Data(40, bad={7, 9}), workers)
    assert mended == first(Data(40, bad={7, 9}), 0)[0]
    assert set(loader.bad) == {7, 9}
    for one, other in zip(plain, mended, strict=True):
        for (index, seed), (found, same) in zip(one, other, strict=True):
            assert found == index if index not in (7, 9) else found not in (7, 9)
            assert same == seed


def test_too_many_bad_items_and_nothing_but_bad_items():
    with pytest.raises(InvalidInput, match="of 40 items cannot be read"):
        first(Data(40, bad={1, 2, 3}), 0, steps=40)
    with pytest.raises(InvalidInput, match="20 items in a row"):
        first(Data(5, bad=set(range(5))), 2)
    with pytest.raises(InvalidInput, match="empty"):
        DataOrder(0, 4, 1)
