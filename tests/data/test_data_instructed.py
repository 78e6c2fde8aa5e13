"""Pairs before and after: one thing differs, and the words say which."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.instructed import KINDS, Instructed
from sfumato.data.recolored import HUES


@pytest.fixture(scope="module")
def data() -> Instructed:
    return Instructed(size=32)


def test_each_kind_changes_what_it_says_and_nothing_else(data: Instructed) -> None:
    drawings = data.emoji.drawings
    counts = Counter(change.kind for change in data.changes)
    assert set(counts) == set(KINDS)
    for change in data.changes:
        if change.kind == "color":
            assert change.to in HUES
            continue
        before, after = drawings[change.before], drawings[change.after]
        if change.kind == "skin":
            assert (before.code, before.style) == (after.code, after.style)
            assert (change.of, change.to) == (before.skin_tone or "yellow", after.skin_tone or "yellow")
        elif change.kind == "style":
            assert before.thing == after.thing
            assert (before.style, after.style) == (change.of, change.to)
        else:
            assert (before.style, before.skin_tone) == (after.style, after.skin_tone)
            assert {change.of, change.to} == {"man", "woman"}
            words = before.concept.split()
            assert [change.to if word == change.of else word for word in words] == after.concept.split()
    both_ways = {(c.before, c.after) for c in data.changes if c.kind != "color"}
    assert {(b, a) for a, b in both_ways} == both_ways


def test_pictures_are_those_of_the_set_and_words_name_what_is_to_be(data: Instructed) -> None:
    emoji = Emoji(size=32, split="all")
    for kind in ("skin", "person", "style"):
        index = next(i for i, change in enumerate(data.changes) if change.kind == kind)
        change, item = data.changes[index], data.load(index, 3)
        assert torch.equal(item.inputs["image"], emoji[change.before].image)
        assert torch.equal(item.image, emoji[change.after].image)
        assert change.to in item.inputs["caption"]
    worded = {data.load(index, seed).inputs["caption"] for seed in range(20)}
    assert len(worded) == 3
    assert worded <= set(data.labels("caption"))
    assert data.load(index, 3).inputs["caption"] == data.load(index, 3).inputs["caption"]


def test_nothing_that_was_held_out_is_in_training(data: Instructed) -> None:
    held = Instructed(size=32, split="held_out")
    for split, kept in ((data, False), (held, True)):
        for change in split.changes:
            if change.kind != "color":
                assert split.emoji.drawings[change.after].held_out is kept
    assert data.fingerprint() != held.fingerprint()


def test_what_is_no_kind_of_change_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not of skin, person, style, color"):
        Instructed(kinds=("size",))
    with pytest.raises(InvalidInput, match="neither"):
        Instructed(split="test")  # type: ignore[arg-type]
