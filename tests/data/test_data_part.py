"""A part of a data set is spread over all of it, and is told from the whole."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.hinted import Hinted
from sfumato.data.mixed import Mixed
from sfumato.data.moved import Moved
from sfumato.data.part import Part
from sfumato.data.scenes import Scenes
from sfumato.registry import build


def test_items_are_the_others_evenly_over_all() -> None:
    whole = Emoji(size=16, wording="varied")
    some = Part(whole, 10)
    assert len(some) == 10
    for index in (0, 3, 9):
        place = index * len(whole) // 10
        assert torch.equal(some.load(index, 5).image, whole.load(place, 5).image)
    kinds = {whole.drawings[index * len(whole) // 10].category for index in range(10)}
    assert len(kinds) > 3
    assert some.fingerprint() not in (whole.fingerprint(), Part(whole, 11).fingerprint())
    assert Part(whole, len(whole)).load(7, 1).inputs == whole.load(7, 1).inputs


def test_transparency_is_that_of_the_item_and_is_there_where_the_other_has_it() -> None:
    whole = Emoji(size=16)
    some = Part(whole, 10)
    assert torch.equal(some.transparent(3), whole.transparent(3 * len(whole) // 10))
    hinted = Hinted(Moved(some), build("detector", {"name": "alpha"}), of="alpha")
    assert bool((hinted.load(15, 0).inputs["hint"] > 0).any())
    assert not hasattr(Part(Scenes(count=4, size=16), 2), "transparent")


def test_buckets_are_those_of_the_items() -> None:
    class Two(Emoji):
        def bucket_of(self, index: int) -> int:
            return index % 2

    data = Part(Two(size=16, concepts=("red apple", "lemon", "penguin")), 3)
    assert [data.bucket_of(i) for i in range(3)] == [(i * len(data.data) // 3) % 2 for i in range(3)]
    assert len(Mixed((data, data))) == 6


@pytest.mark.parametrize("count", [0, 10**9])
def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(InvalidInput, match="items of"):
        Part(Emoji(size=16), count)
