"""Item: one picture and what is known of it; a batch is many of one size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput


class Item(NamedTuple):
    """One picture: image (C, H, W), float32 in [-1, 1], and its inputs by name (caption, label, ...)."""

    image: Tensor
    inputs: dict[str, Any]


class Batch(NamedTuple):
    """Pictures of one size: image (B, C, H, W), and each input as a list of B, None where one lacks it."""

    image: Tensor
    inputs: dict[str, list[Any]]


class Dataset(Protocol):
    """What the trainer needs of data: a length, items by index and seed, and a fingerprint.

    All randomness of an item (crop, flip, scene) follows from the index and the seed, so that a resumed run
    sees the very same pictures. `data[i]` is `data.load(i, seed=0)`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def load(self, index: int, seed: int) -> Item:
        """The item of an index under a seed."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and settings: it changes when the data or their treatment change."""
        ...


def collate(items: Sequence[Item]) -> Batch:
    """Items of one size as a batch.

    Raises:
        InvalidInput: no items, or pictures of different sizes.
    """
    if not items:
        raise InvalidInput("no items to make a batch of", where="batch")
    shapes = {tuple(item.image.shape) for item in items}
    if len(shapes) > 1:
        raise InvalidInput(
            f"pictures of different sizes in one batch: {sorted(shapes)}",
            where="batch",
            do="group indices by bucket_of",
        )
    keys = list(dict.fromkeys(key for item in items for key in item.inputs))
    inputs = {key: [item.inputs.get(key) for item in items] for key in keys}
    return Batch(torch.stack([item.image for item in items]), inputs)


def position(index: int, length: int, name: str) -> int:
    """The index counted from the front; IndexError beyond either end, which also ends a for loop."""
    if not -length <= index < length:
        raise IndexError(f"{name} holds {length} items, there is no item {index}")
    return index % length


def distinct(values: Iterable[Any]) -> list[str]:
    """The distinct words among the values, in order of first appearance: the names of a class label."""
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def hash_of(data: Any, rows: Any, ignore: Sequence[str] = ()) -> str:
    """SHA-256 of a dataset's settings (its dataclass fields but the ignored ones) and its rows, as JSON."""
    settings = {
        field.name: getattr(data, field.name)
        for field in dataclasses.fields(data)
        if field.init and field.name not in ignore
    }
    text = json.dumps([type(data).__name__, settings, rows], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
