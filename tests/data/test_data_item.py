import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.data.item import Item, collate, distinct, position


def test_collate_stacks_and_keeps_none_where_an_item_lacks_an_input():
    items = [
        Item(torch.full((3, 4, 4), 0.5), {"caption": "a"}),
        Item(torch.zeros(3, 4, 4), {"label": "x", "caption": "b"}),
    ]
    batch = collate(items)
    assert batch.image.shape == (2, 3, 4, 4)
    assert batch.image[0].eq(0.5).all()
    assert batch.inputs == {"caption": ["a", "b"], "label": [None, "x"]}


def test_collate_refuses_nothing_and_mixed_sizes():
    with pytest.raises(InvalidInput, match="no items"):
        collate([])
    with pytest.raises(InvalidInput, match="different sizes"):
        collate([Item(torch.zeros(3, 4, 4), {}), Item(torch.zeros(3, 4, 5), {})])


def test_position_counts_from_both_ends():
    assert [position(i, 3, "x") for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for index in (3, -4):
        with pytest.raises(IndexError):
            position(index, 3, "x")


def test_distinct_keeps_the_order_of_appearance():
    assert distinct(["b", None, "a", "b", 3]) == ["b", "a"]
