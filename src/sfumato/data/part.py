"""Part: some of another data set, to find out how much data a thing takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.around import Around
from sfumato.data.emoji import Emoji
from sfumato.data.item import Dataset, Item


@dataclass
class Part(Around):
    """So many items of another data set, evenly over all of it.

    Item k of n is item ⌊k N / n⌋ of its N, so that a smaller part is spread as a larger one, and no kind of
    picture is left out because its pictures stand together.

    Args:
        data: the other data set.
        count: how many of its items.

    Raises:
        InvalidInput: it holds fewer, or none are wanted.
    """

    data: Dataset = field(default_factory=Emoji)
    count: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.data):
            raise InvalidInput(f"{self.count} items of {len(self.data)}", where="part.count")

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, seed: int) -> Item:
        """The item of an index, as the other loads it under the seed."""
        return self.data.load(self._place(index), seed)

    def bucket_of(self, index: int) -> int:
        """The other's bucket of the item."""
        return super().bucket_of(self._place(index))

    def _transparent(self, index: int, seed: int = 0) -> Tensor:
        """The picture of an index with its transparency, as the other has it."""
        made: Tensor = self.data.transparent(self._place(index), seed)  # type: ignore[attr-defined]
        return made

    def _place(self, index: int) -> int:
        return index * len(self.data) // self.count
