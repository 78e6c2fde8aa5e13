"""Augmented: another conditioner, with room for how a training picture was augmented."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sfumato.conditioners.nothing import Nothing
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput

LABELS = 9
"""How many numbers tell an augmentation."""


class Inner(Protocol):
    """Any other conditioner."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def __call__(self, count: int, **inputs: Any) -> Condition: ...

    def null(self, condition: Condition) -> Condition: ...

    def check(self, **inputs: Any) -> None: ...


_NOTHING: Inner = Nothing()
_TOLD = ("denied", "kept", "lists", "pictures", "size_of")


@dataclass(eq=False, repr=False)
class Augmented(nn.Module):
    """What another conditioner says, and after its vector nine numbers that tell an augmentation.

    They are zeros, "a picture as it is", wherever a model is used; in training an objective with `augment`
    writes them (`told`). Its network takes nine more in the condition's vector than without: `augment: 9` of
    ncsnpp, in others nine more `classes`: 9 of an unconditional one, 19 with ten classes.

    Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, appendix F.2.

    Args:
        conditioner: says all else; none for an unconditional model.
    """

    # A default value would stand before the module of that name.
    conditioner: Inner | None = field(default_factory=lambda: None)

    def __new__(cls, *args: Any, **kwargs: Any) -> Augmented:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        if isinstance(self.conditioner, Augmented):
            raise InvalidInput("is augmented already", where="augmented.conditioner")
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    @property
    def inner(self) -> Inner:
        """The other conditioner."""
        return _NOTHING if self.conditioner is None else self.conditioner

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the other conditioner's inputs."""
        return self.inner.inputs

    def __getattr__(self, name: str) -> Any:
        """What else the other tells of its inputs, such as which are pictures."""
        if name in _TOLD:
            return getattr(self.inner, name)
        return super().__getattr__(name)

    @property
    def labels(self) -> dict[str, list[str]]:
        """The other conditioner's names by input, if it has any."""
        return getattr(self.conditioner, "labels", {})

    def forward(self, count: int, **inputs: Any) -> Condition:
        """What the other says of so many pictures, and zeros."""
        zeros = torch.zeros(count, LABELS, device=self.device_of.device)
        return self.inner(count, **inputs).merge(Condition(vector=zeros))

    def null(self, condition: Condition) -> Condition:
        """The other's null; the augmentation is told all the same, for it is no part of what is asked."""
        labels, rest = _split(condition)
        return self.inner.null(rest).merge(Condition(vector=labels))

    def check(self, **inputs: Any) -> None:
        """As the other does."""
        self.inner.check(**inputs)

    @staticmethod
    def told(condition: Condition, labels: Tensor) -> Condition:
        """The condition with labels (B, 9) in place of its zeros."""
        _, rest = _split(condition)
        return rest.merge(Condition(vector=labels))


def _split(condition: Condition) -> tuple[Tensor, Condition]:
    """The nine numbers, and the condition without them."""
    assert condition.vector is not None
    vector, labels = condition.vector[:, :-LABELS], condition.vector[:, -LABELS:]
    return labels, replace(condition, vector=vector if vector.shape[1] else None)
