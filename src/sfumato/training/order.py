"""Data order: which items a step sees, a pure function of seed and step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import philox

_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Drawn:
    """Items of one batch: their indices, and a seed each for random augmentation."""

    epoch: int
    indices: tuple[int, ...]
    seeds: tuple[int, ...]


class DataOrder:
    """Shuffled batches without state: asking for step s gives the same batch on every machine, at any time.

    Each bucket (items of one shape) is an endless stream of permutations of its items, cut into batches that
    may reach over an epoch's edge, so that every item is seen equally often to the end. An epoch holds
    floor((e + 1) n / batch) - floor(e n / batch) batches of a bucket of n items, in shuffled order.

    Args:
        size: number of items.
        batch: items a step.
        seed: of the run.
        bucket_of: the bucket of an index; None puts all into one.
    """

    def __init__(
        self, size: int, batch: int, seed: int, bucket_of: Callable[[int], Hashable] | None = None
    ) -> None:
        if size < 1:
            raise InvalidInput("the data set is empty", where="data")
        if batch < 1:
            raise InvalidInput(f"a batch of {batch} is none", where="batch")
        self.size, self.batch, self.seed = size, batch, seed
        groups: dict[Hashable, list[int]] = {}
        for index in range(size):
            groups.setdefault(bucket_of(index) if bucket_of else 0, []).append(index)
        # Sorted by their first item, so that the order does not hang on how buckets are named.
        self._buckets = [torch.tensor(items) for items in sorted(groups.values())]
        self._permutations: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._epochs: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, step: int) -> Drawn:
        """The batch of a step, counted from 0."""
        epoch = self.epoch(step)
        bucket, number = self._batches(epoch)[step - self.first_step(epoch)].tolist()
        items = self._buckets[bucket]
        places = torch.arange(number * self.batch, (number + 1) * self.batch)
        rounds = places // len(items)
        indices = torch.cat(
            [
                self._permuted(bucket, int(r))[places[rounds == r] % len(items)]
                for r in sorted(set(rounds.tolist()))
            ]
        )
        low, high, _, _ = self._words(indices, rounds, 1)
        seeds = (high >> 1 << 32) | low
        return Drawn(epoch, tuple(indices.tolist()), tuple(seeds.tolist()))

    def first_step(self, epoch: int) -> int:
        """How many steps come before an epoch."""
        return sum(epoch * len(items) // self.batch for items in self._buckets)

    def epoch(self, step: int) -> int:
        """The epoch a step belongs to."""
        low, high = 0, 1
        while self.first_step(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.first_step(middle) <= step else (low, middle)
        return low

    def neighbour(self, index: int, seed: int) -> int:
        """Another item of the same bucket, chosen by seed; the item itself where it is alone."""
        items = next(items for items in self._buckets if index in items)
        return int(items[(int((items == index).nonzero()) + 1 + seed % max(len(items) - 1, 1)) % len(items)])

    def _batches(self, epoch: int) -> Tensor:
        """(bucket, batch number of the bucket) of an epoch's steps in shuffled order, (K, 2)."""
        if epoch not in self._epochs:
            rows = [
                torch.stack((torch.full_like(numbers, bucket), numbers), 1)
                for bucket, items in enumerate(self._buckets)
                for numbers in [
                    torch.arange(epoch * len(items) // self.batch, (epoch + 1) * len(items) // self.batch)
                ]
            ]
            table = torch.cat(rows)
            self._epochs[epoch] = table[self._shuffled(len(table), epoch, 0, 2)]
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _permuted(self, bucket: int, round_: int) -> Tensor:
        """A bucket's items in the order of one round through them."""
        key = (bucket, round_)
        if key not in self._permutations:
            items = self._buckets[bucket]
            self._permutations[key] = items[self._shuffled(len(items), round_, bucket, 3)]
            if len(self._permutations) > 2 * len(self._buckets):
                self._permutations.popitem(last=False)
        return self._permutations[key]

    def _shuffled(self, count: int, place: int, bucket: int, purpose: int) -> Tensor:
        low, high, _, _ = self._words(torch.arange(count), place, purpose, bucket)
        return torch.argsort((high >> 1 << 32) | low, stable=True)

    def _words(
        self, counter: Tensor, place: Tensor | int, purpose: int, bucket: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key = (self.seed & _MASK, self.seed >> 32 & _MASK)
        return philox((counter, place, purpose, bucket), key)
