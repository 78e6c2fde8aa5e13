"""Conditions: rows go in and out of batches unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Chain, Hooks


def full(rows: int, length: int = 3, start: float = 0.0, mask: bool = True) -> Condition:
    def numbers(*shape: int) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        return start + torch.arange(count, dtype=torch.float32).view(shape)

    return Condition(
        vector=numbers(rows, 4),
        tokens=numbers(rows, length, 5),
        mask=torch.ones(rows, length, dtype=torch.bool) if mask else None,
        channels=numbers(rows, 2, 4, 4),
        draft=numbers(rows, 3, 4, 4),
        image_tokens=numbers(rows, 2, 5),
        residuals=(numbers(rows, 3, 2, 2), numbers(rows, 6, 1, 1)),
    )


def same(a: Condition, b: Condition, but: tuple[str, ...] = ()) -> None:
    for name in ("vector", "tokens", "mask", "channels", "draft", "image_tokens", "branch"):
        if name in but:
            continue
        mine, theirs = getattr(a, name), getattr(b, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert torch.equal(mine, theirs), name
    assert all(torch.equal(x, y) for x, y in zip(a.residuals, b.residuals, strict=True))


def test_length() -> None:
    assert len(Condition()) == 0
    assert len(full(3)) == 3
    assert len(Condition(residuals=(torch.zeros(2, 1, 1, 1),))) == 2


def test_stacked_rows_come_back_out() -> None:
    a, b = full(2), full(3, start=100.0)
    both = Condition.stack([a, b])
    assert len(both) == 5
    assert both.branch is not None
    assert both.branch.tolist() == [0, 0, 1, 1, 1]
    same(both[:2], a, but=("branch",))
    same(both[2:], b, but=("branch",))


def test_short_token_sequences_are_padded_and_masked() -> None:
    a, b = full(1, length=2, mask=False), full(1, length=4, start=9.0, mask=False)
    both = Condition.stack([a, b])
    assert both.tokens is not None
    assert both.mask is not None
    assert both.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(both.tokens[0, :2], a.tokens[0])  # type: ignore[index]
    assert not both.tokens[0, 2:].any()


def test_no_mask_where_none_is_needed() -> None:
    assert Condition.stack([full(1, mask=False), full(1, mask=False)]).mask is None


@pytest.mark.parametrize("slot", ["vector", "tokens", "channels", "draft", "image_tokens"])
def test_a_slot_filled_in_one_branch_only_is_refused(slot: str) -> None:
    filled = Condition(**{slot: getattr(full(1), slot)})
    with pytest.raises(InvalidInput, match=slot):
        Condition.stack([filled, Condition()])
    with pytest.raises(InvalidInput, match=slot):
        filled.where(torch.tensor([True]), Condition())


def test_unlike_residuals_are_refused() -> None:
    with pytest.raises(InvalidInput, match="residuals"):
        Condition.stack([Condition(residuals=(torch.zeros(1, 2),)), Condition()])


def test_where_takes_rows_from_one_or_the_other() -> None:
    a, b = full(3), full(3, start=50.0)
    mixed = a.where(torch.tensor([True, False, True]), b)
    for row, source in enumerate((a, b, a)):
        same(mixed[row], source[row])


def test_where_pads_tokens_of_a_shorter_null() -> None:
    a, b = full(2, length=4), full(2, length=1, start=50.0)
    mixed = a.where(torch.tensor([True, False]), b)
    assert mixed.mask is not None
    assert mixed.mask.tolist() == [[True] * 4, [True, False, False, False]]


def test_where_all_or_nothing() -> None:
    a, b = full(2), full(2, start=50.0)
    same(a.where(torch.tensor([True, True]), b), a)
    assert torch.equal(a.where(torch.tensor([False, False]), b).vector, b.vector)  # type: ignore[arg-type]


def test_indexing() -> None:
    a = full(4)
    same(a[1], a[1:2])
    same(a[-1], a[3:4])
    same(a[torch.tensor([2, 0])], Condition.stack([a[2], a[0]]), but=("branch",))


def test_merge_joins_slots() -> None:
    a, b = full(2), full(2, start=7.0)
    with pytest.raises(InvalidInput, match="draft"):
        a.merge(b)
    both = a.merge(replace(b, draft=None))
    assert both.draft is a.draft
    assert torch.equal(both.vector, torch.cat([a.vector, b.vector], 1))  # type: ignore[arg-type, list-item]
    assert torch.equal(both.tokens, torch.cat([a.tokens, b.tokens], 1))  # type: ignore[arg-type, list-item]
    assert both.channels is not None
    assert both.mask is not None
    assert both.channels.shape == (2, 4, 4, 4)
    assert both.mask.shape == (2, 6)
    assert torch.equal(both.residuals[0], a.residuals[0] + b.residuals[0])


def test_merge_with_nothing_changes_nothing() -> None:
    same(full(2).merge(Condition()), full(2))
    same(Condition().merge(full(2)), full(2))


def test_merge_masks_tokens_that_had_no_mask() -> None:
    masked = Condition(tokens=torch.zeros(1, 2, 3), mask=torch.tensor([[True, False]]))
    plain = Condition(tokens=torch.zeros(1, 1, 3))
    assert masked.merge(plain).mask.tolist() == [[True, False, True]]  # type: ignore[union-attr]
    assert plain.merge(masked).mask.tolist() == [[True, True, False]]  # type: ignore[union-attr]


def test_merge_chains_hooks() -> None:
    first, second = Hooks(), Hooks()
    merged = Condition(hooks=first).merge(Condition(hooks=second)).hooks
    assert isinstance(merged, Chain)
    assert merged.hooks == (first, second)
    assert Condition(hooks=first).merge(Condition()).hooks is first


def test_to_casts_numbers_but_not_masks() -> None:
    stacked = Condition.stack([full(1)]).to(torch.float64)
    assert stacked.vector is not None
    assert stacked.mask is not None
    assert stacked.branch is not None
    assert stacked.vector.dtype == stacked.residuals[0].dtype == torch.float64
    assert stacked.mask.dtype == torch.bool
    assert stacked.branch.dtype == torch.int64
