"""What all data sets have in common that stand around another one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sfumato.data.item import Dataset, Item, hash_of, position


class Around:
    """A data set of another's items, one each, with more beside them; a class derives and writes `load`.

    Args:
        data: the other one, whose buckets, names and unreadable pictures are these, too.
    """

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        return self.load(position(index, len(self), type(self).__name__.lower()), seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index under a seed."""
        raise NotImplementedError

    @property
    def transparent(self) -> Callable[..., Tensor]:
        """`_transparent` of a class that has it, where the other knows its pictures' transparency."""
        if not hasattr(self.data, "transparent"):
            raise AttributeError("transparent")
        found: Callable[..., Tensor] = self._transparent
        return found

    _transparent: Callable[..., Tensor]

    @property
    def bad(self) -> list[tuple[str, str]]:
        """What the other could not read, with the reason."""
        return getattr(self.data, "bad", [])

    def bucket_of(self, index: int) -> int:
        """Which items share a size with this one; a batch holds indices of one bucket."""
        own = getattr(self.data, "bucket_of", None)
        return own(index) if own is not None else 0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each bucket of the other, where it has any."""
        return getattr(self.data, "sizes", ())

    def align(self, step: int) -> None:
        """Have the other derive buckets, if it does, with sides that divide by a step."""
        if (own := getattr(self.data, "align", None)) is not None:
            own(step)

    def labels(self, key: str) -> list[str]:
        """The distinct values of an input, as the other tells them."""
        own = getattr(self.data, "labels", None)
        return own(key) if own is not None else []

    def fingerprint(self) -> str:
        """SHA-256 of the other's fingerprint and the settings."""
        return hash_of(self, self.data.fingerprint(), ignore=("data",))
