"""Hints: pictures that controls read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioners.beside import Beside, first_size, refuse_unheard, rows_of, values_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import picture_of


@dataclass(eq=False, repr=False)
class Hints(Beside):
    """One picture for each control, of the size of what is made, in [0, 1]; a control may be told none.

    The null tells the same pictures: guidance steers what else is said (that controls act on one side alone
    is a setting of the guidance control_scale).

    Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models",
    arXiv:2302.05543.

    Args:
        names: of the inputs, one a control, in the order of the network's controls.
        colors: channels of every picture, 1 or 3; or of each.

    Raises:
        InvalidInput: names that are none; when told, pictures for some rows alone, or of shapes that differ.
    """

    names: tuple[str, ...] = ("hint",)
    colors: int | tuple[int, ...] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        good = all(name.isidentifier() and name != "size" for name in self.names)
        if not self.names or not good or len(set(self.names)) != len(self.names):
            raise InvalidInput(f"{self.names} are no names of inputs", where="hints.names")
        each = self.colors if isinstance(self.colors, tuple) else (self.colors,) * len(self.names)
        if len(each) != len(self.names) or set(each) - {1, 3}:
            raise InvalidInput(f"{self.colors} channels are none of these hints", where="hints.colors")
        self.colors_of = dict(zip(self.names, each, strict=True))

    @property
    def inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Their names, and the size of what is made."""
        return (*self.names, "size")

    kept = inputs

    @property
    def pictures(self) -> tuple[str, ...]:  # type: ignore[override]
        """Their names."""
        return self.names

    @property
    def shares(self) -> dict[str, int | None]:
        """None: the slot is theirs alone."""
        return {}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """Each one picture for all rows, a list with one a row, or None → hints (count, colors, H, W).

        A picture is a path, a PIL image, or a tensor (C, H, W) in [-1, 1].
        """
        return Condition(hints=tuple(self._hint(count, name, inputs) for name in self.names))

    def null(self, condition: Condition) -> Condition:
        """The same pictures."""
        return Condition(hints=condition.hints)

    def size_of(self, **inputs: Any) -> tuple[int, int] | None:
        """The size of the first picture of any name."""
        return first_size(self._given(inputs))

    def check(self, **inputs: Any) -> None:
        """Refuse what cannot be read before any work."""
        refuse_unheard(inputs, self.inputs)
        for _ in self._given(inputs):
            pass

    def _hint(self, count: int, name: str, inputs: dict[str, Any]) -> Tensor | None:
        rows = rows_of(count, inputs.get(name), name)
        given = [row for row in rows if row is not None]
        if not given:
            return None
        if len(given) != count:
            raise InvalidInput("is said of some pictures and not of others", where=name)
        read = [picture_of(row, self.colors_of[name], name) for row in given]
        fitted, _ = self._fitted(read, inputs, "bicubic", name)
        pictures = torch.stack([each.clamp(-1, 1) for each in fitted])
        return ((pictures + 1) / 2).to(self.device_of.device)

    def _given(self, inputs: Mapping[str, Any]) -> Iterator[Tensor]:
        """Every picture that is said."""
        for name in self.names:
            for row in values_of(inputs.get(name)):
                yield picture_of(row, self.colors_of[name], name)
