"""Loading batches ahead of the step that needs them, without changing what they hold."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.core.noise import derive
from sfumato.data.item import Dataset
from sfumato.training.order import DataOrder


class Loader:
    """Items by step, loaded by threads ahead of time; items that cannot be read are replaced and counted.

    What a step sees depends on seed and step alone, whatever the number of workers. In place of a bad item
    stands another of its bucket, chosen by the item's seed.

    Args:
        data: the data set.
        order: which items a step sees.
        collate: items → batch.
        workers: threads; 0 loads in the step itself.
        share: rows of a step's batch this process loads.
        most_bad: share of bad items above which training stops.
    """

    ahead = 2

    def __init__(
        self,
        data: Dataset,
        order: DataOrder,
        collate: Callable[[Sequence[Any]], Any],
        workers: int = 0,
        share: slice | None = None,
        most_bad: float = 0.05,
    ) -> None:
        self.data, self.order, self.collate, self.workers = data, order, collate, workers
        self.share = share or slice(None)
        self.most_bad = most_bad
        self.bad: dict[int, str] = {}

    def batches(self, start: int, pieces: int) -> Generator[list[Any]]:
        """From a step on, without end: each step's share as `pieces` batches one after another."""
        pool = ThreadPoolExecutor(self.workers, "sfumato-load") if self.workers else nullcontext()
        with pool as threads:
            waiting: list[list[Future[Any]]] = []
            step = start
            try:
                while True:
                    if threads is None:
                        items = [self._item(*pair) for pair in self._pairs(step)]
                    else:
                        while len(waiting) <= self.ahead:
                            ahead = self._pairs(step + len(waiting))
                            waiting.append([threads.submit(self._item, *pair) for pair in ahead])
                        items = [future.result() for future in waiting.pop(0)]
                    self._check()
                    size = len(items) // pieces
                    yield [self.collate(items[i * size : (i + 1) * size]) for i in range(pieces)]
                    step += 1
            finally:
                for future in (future for futures in waiting for future in futures):
                    future.cancel()

    def item(self, index: int, seed: int) -> Any:
        """One item, or a good one in its place; for validation."""
        return self._item(index, seed)

    def _pairs(self, step: int) -> list[tuple[int, int]]:
        drawn = self.order(step)
        return list(zip(drawn.indices, drawn.seeds, strict=True))[self.share]

    def _item(self, index: int, seed: int) -> Any:
        for attempt in range(20):
            try:
                return self.data.load(index, seed)
            except (SfumatoError, OSError, ValueError, SyntaxError) as error:
                self.bad[index] = str(error)
                index = self.order.neighbour(index, derive(seed, "bad item", attempt))
        raise InvalidInput(
            f"20 items in a row could not be read, the last: {self.bad[next(reversed(self.bad))]}",
            where="data",
        )

    def _check(self) -> None:
        if len(self.bad) > max(self.most_bad * len(self.data), 0.999):
            index, reason = next(iter(self.bad.items()))
            raise InvalidInput(
                f"{len(self.bad)} of {len(self.data)} items cannot be read, such as item {index}: {reason}",
                where="data",
                do="repair or remove them",
            )
