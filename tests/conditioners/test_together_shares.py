"""Together: conditioners that share a slot stand side by side, and each forgets its own share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sfumato.conditioners.nothing import Nothing
from sfumato.conditioners.together import Together
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


@dataclass
class Says:
    """Fills slots with a number, row by row; its null negates what it is shown of its slots."""

    inputs: tuple[str, ...]
    number: float
    widths: dict[str, int]
    shares: dict[str, int | None] = field(default_factory=dict)
    masked: bool = False

    def __call__(self, count: int, **inputs: Any) -> Condition:
        slots: dict[str, Any] = {}
        for slot, width in self.widths.items():
            shape = {"vector": (width,), "tokens": (width, 2), "channels": (width, 1, 1)}[slot]
            slots[slot] = torch.full((count, *shape), self.number)
        if self.masked:
            slots["mask"] = torch.arange(self.widths["tokens"]).expand(count, -1) < 1
        return Condition(**slots)

    def null(self, condition: Condition) -> Condition:
        slots = {slot: -getattr(condition, slot) for slot in self.widths}
        return Condition(**slots, mask=condition.mask if self.masked else None)

    def check(self, **inputs: Any) -> None: ...


@pytest.mark.parametrize("slot", ["vector", "channels", "tokens"])
@pytest.mark.parametrize("rest", [0, 1, 2])
def test_each_forgets_its_own_share(slot: str, rest: int) -> None:
    """Three of them, one of which takes what the others leave, wherever it stands."""
    parts = [
        Says((name,), 1.0 + i, {slot: 2 + i}, {slot: None if i == rest else 2 + i})
        for i, name in enumerate("abc")
    ]
    both = Together((Nothing(), *parts))
    said = both(2)
    wanted = torch.tensor([1.0] * 2 + [2.0] * 3 + [3.0] * 4)
    assert torch.equal(
        getattr(said, slot).flatten(2)[..., 0] if slot != "vector" else said.vector, wanted.expand(2, -1)
    )
    seen = []
    for part in parts:
        part.null = lambda condition, part=part: (  # type: ignore[method-assign]
            seen.append(getattr(condition, slot)),
            Condition(**{slot: -getattr(condition, slot)}),
        )[1]
    null = both.null(said)
    assert [each.unique().tolist() for each in seen] == [[1.0], [2.0], [3.0]]
    assert torch.equal(getattr(null, slot), -getattr(said, slot))


def test_masks_go_with_their_tokens() -> None:
    first = Says(("a",), 1.0, {"tokens": 3}, {"tokens": None}, masked=True)
    second = Says(("b",), 2.0, {"tokens": 2}, {"tokens": 2})
    said = Together((first, second))(1)
    assert said.mask.tolist() == [[True, False, False, True, True]]
    null = Together((first, second)).null(said)
    assert null.mask.tolist() == said.mask.tolist()
    assert torch.equal(null.tokens, -said.tokens)


def test_a_part_without_shares_has_its_slots_to_itself() -> None:
    alone = Says(("a",), 1.0, {"vector": 2})
    sized = Says(("b",), 2.0, {"channels": 2}, {"channels": 2})
    both = Together((alone, sized))
    assert torch.equal(both.null(both(2)).vector, -torch.ones(2, 2))
    clash = Together((alone, Says(("b",), 2.0, {"vector": 2}, {"vector": 2})))
    with pytest.raises(InvalidInput, match="two conditioners fill this slot"):
        clash(1)


def test_shares_that_cannot_be_are_refused() -> None:
    greedy = Says(("a",), 1.0, {"tokens": 3}, {"tokens": None})
    with pytest.raises(InvalidInput, match="take what is left"):
        Together((greedy, Says(("b",), 1.0, {"tokens": 3}, {"tokens": None})))
    wrong = Together((Says(("a",), 1.0, {"vector": 3}, {"vector": 4}), Nothing()))
    with pytest.raises(InvalidInput, match=r"together\.vector: 3 where its parts fill 4"):
        wrong.null(wrong(1))
