"""Mixed: several data sets as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import accumulate

from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset, Item, distinct, hash_of, position

_AGAIN = 1_000_003
"""Between the seeds of one item's looks; seeds of passes are small."""


@dataclass
class Mixed:
    """Data sets one after another, so that each is seen as often as it has items.

    An item has the inputs of the set it is of; where a batch mixes sets, those it lacks are None.

    Args:
        parts: data sets of pictures of one size, or in buckets of their own.
        repeats: how often each is gone through in a pass; () is once.

    Raises:
        InvalidInput: no parts, or other than one whole number from 1 for each.
    """

    parts: tuple[Dataset, ...] = ()
    repeats: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidInput("give one data set or more", where="mixed.parts")
        times = self.repeats or (1,) * len(self.parts)
        if len(times) != len(self.parts) or min(times) < 1:
            raise InvalidInput(
                f"{list(times)} for {len(self.parts)} parts", where="mixed.repeats", do="give each 1 or more"
            )
        self.ends = list(accumulate(n * len(part) for n, part in zip(times, self.parts, strict=True)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index, as its own set loads it under the seed."""
        part, place = self._find(index)
        again, place = divmod(place, len(self.parts[part]))
        # A second look in one pass is another look: of other crops and words.
        return self.parts[part].load(place, seed + again * _AGAIN)

    def bucket_of(self, index: int) -> Hashable:
        """Bucket of an index: a set's own are its own, sets without are taken to be of one size."""
        part, place = self._find(index)
        own = getattr(self.parts[part], "bucket_of", None)
        return None if own is None else (part, own(place % len(self.parts[part])))

    def align(self, step: int) -> None:
        """Have the sets that derive buckets derive them with sides that divide by a step."""
        for part in self.parts:
            if (own := getattr(part, "align", None)) is not None:
                own(step)

    def labels(self, key: str) -> list[str]:
        """The distinct values of an input over all sets, in order."""
        return distinct(name for part in self.parts if hasattr(part, "labels") for name in part.labels(key))

    def fingerprint(self) -> str:
        """SHA-256 of the sets' own."""
        return hash_of(self, [part.fingerprint() for part in self.parts], ignore=("parts",))

    def _find(self, index: int) -> tuple[int, int]:
        index = position(index, len(self), "mixed")
        part = bisect_right(self.ends, index)
        return part, index - (self.ends[part - 1] if part else 0)
