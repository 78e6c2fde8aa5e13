"""Class labels: one word of each of a few lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest


@dataclass(eq=False, repr=False)
class ClassLabel(nn.Module):
    """Named classes, one-hot in the condition's vector; several lists (concept, style) stand side by side.

    The network's class table turns the one-hot row into an embedding (`classes` = total number of names), so
    that zeros are the null: nothing said.

    Args:
        labels: names by input, e.g. {"concept": ["red apple", "cat"], "style": ["noto", "fluent 3d"]}.
        null_row: the vector has one more entry, 1 where nothing at all is said: for networks whose class
            table ends in an embedding of "no class" (latent diffusion, DiT).
    """

    labels: dict[str, list[str]] = field(default_factory=dict)
    null_row: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        if not self.labels or any(
            len(set(names)) != len(names) or not names for names in self.labels.values()
        ):
            raise InvalidInput("give at least one list of distinct names", where="class_label.labels")
        self.index = {key: {name: i for i, name in enumerate(names)} for key, names in self.labels.items()}
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, e.g. ("concept", "style")."""
        return tuple(self.labels)

    @property
    def size(self) -> int:
        """Length of the vector: the network's `classes`."""
        return sum(len(names) for names in self.labels.values()) + self.null_row

    @property
    def shares(self) -> dict[str, int | None]:
        """What it fills of the vector, where others stand beside it."""
        return {"vector": self.size}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One name for all rows, a list with one a row, or None for nothing → vector (count, size)."""
        parts = []
        for key, names in self.labels.items():
            given = inputs.get(key)
            row = [given] * count if given is None or isinstance(given, str) else list(given)
            if len(row) != count:
                raise InvalidInput(f"{len(row)} values for {count} pictures", where=key)
            parts.append(self._one_hot(key, row, len(names)))
        if self.null_row:
            parts.append((torch.cat(parts, dim=1).sum(dim=1, keepdim=True) == 0).float())
        return Condition(vector=torch.cat(parts, dim=1).to(self.device_of.device))  # type: ignore[arg-type]

    def null(self, condition: Condition) -> Condition:
        """Zeros: no class; with `null_row` its 1 after them."""
        assert condition.vector is not None
        vector = torch.zeros_like(condition.vector)
        if self.null_row:
            vector[:, -1] = 1
        return Condition(vector=vector)

    def check(self, **inputs: Any) -> None:
        """Refuse unknown inputs and names, naming the nearest, before any work."""
        for key, value in inputs.items():
            if value is None:
                continue
            if key not in self.labels:
                raise InvalidInput("this model heeds no such input", where=key, do=nearest(key, self.labels))
            for name in [value] if isinstance(value, str) else value:
                self._look_up(key, name)

    def _one_hot(self, key: str, row: Sequence[str | None], size: int) -> Tensor:
        out = torch.zeros(len(row), size)
        for i, name in enumerate(row):
            if name is not None:
                out[i, self._look_up(key, name)] = 1.0
        return out

    def _look_up(self, key: str, name: Any) -> int:
        if not isinstance(name, str) or name not in self.index[key]:
            raise InvalidInput(f"unknown {key} {name!r}", where=key, do=nearest(str(name), self.index[key]))
        return self.index[key][name]
