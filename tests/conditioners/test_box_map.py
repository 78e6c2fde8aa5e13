"""Box map: every label's vector lies exactly where its boxes do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sfumato.conditioners.box_map import BoxMap
from sfumato.conditioners.boxes import Boxes
from sfumato.core.errors import InvalidInput
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel

APPLE = {"label": "apple", "box": [0.25, 0.5, 0.25, 0.5]}
CAT = {"label": "cat", "box": [0.0, 0.0, 0.5, 0.1]}


def small(patch: int = 1, **settings: Any) -> BoxMap:
    torch.manual_seed(0)
    conditioner = BoxMap(**{"names": ["apple", "cat", "kite"], "channels": 4, **settings}).double().eval()
    conditioner.bind(Pixel(patch=patch, multiple=patch))
    return conditioner


def drawn(conditioner: BoxMap, layout: Any, size: tuple[int, int] = (8, 8), **told: Any) -> torch.Tensor:
    channels = conditioner(1, boxes=layout, size=size, **told).channels
    assert channels is not None
    return channels[0]


def test_a_box_on_the_grid_is_its_vector_inside_and_nothing_outside() -> None:
    conditioner = small()
    seen = drawn(conditioner, [APPLE])
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[4:8, 2:4] = True
    vector = conditioner.vectors.weight[0]
    assert torch.equal(seen[:, inside], vector[:, None].expand(-1, 8))
    assert not seen[:, ~inside].any()


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (64, 16)])
def test_shares_of_places_sum_to_the_area_of_the_box(size: tuple[int, int]) -> None:
    conditioner = small()
    box = [0.137, 0.291, 0.3333, 0.4571]
    seen = drawn(conditioner, [{"label": "kite", "box": box}], size)
    area = box[2] * box[3] * size[0] * size[1]
    torch.testing.assert_close(seen.sum((1, 2)), conditioner.vectors.weight[2] * area, rtol=1e-12, atol=0)


def test_a_place_cut_by_an_edge_has_its_part() -> None:
    conditioner = small()
    seen = drawn(conditioner, [{"label": "cat", "box": [0.0, 0.0, 0.1875, 1.0]}])
    parts = seen[:, 3] / conditioner.vectors.weight[1][:, None]
    torch.testing.assert_close(parts, torch.tensor([1, 0.5, 0, 0, 0, 0, 0, 0]).double().expand(4, -1))


def test_boxes_add_and_their_order_says_nothing() -> None:
    conditioner = small()
    both = drawn(conditioner, [APPLE, CAT])
    torch.testing.assert_close(both, drawn(conditioner, [CAT, APPLE]), rtol=0, atol=1e-15)
    torch.testing.assert_close(both, drawn(conditioner, [APPLE]) + drawn(conditioner, [CAT]))


def test_a_crop_shows_its_part_of_the_scene() -> None:
    conditioner = small()
    whole = drawn(conditioner, [APPLE, CAT], (16, 16))
    seen = drawn(conditioner, [APPLE, CAT], (8, 4), boxes_crop=[0.25, 0.5, 0.25, 0.5])
    torch.testing.assert_close(seen, whole[:, 8:, 4:8])


def test_places_are_those_of_the_space() -> None:
    """A patch of four pixels is one place, and the vector of a box is averaged over its pixels."""
    fine = drawn(small(), [APPLE, CAT], (16, 16))
    coarse = drawn(small(patch=4), [APPLE, CAT], (16, 16))
    torch.testing.assert_close(coarse, torch.nn.functional.avg_pool2d(fine, 4))


def test_rows_nulls_and_what_is_learnt() -> None:
    conditioner = small()
    told = conditioner(3, boxes=[[APPLE], None, json.dumps([CAT])], size=[(8, 8)] * 3)
    assert torch.equal(told.channels[0], drawn(conditioner, [APPLE]))
    assert torch.equal(told.channels[2], drawn(conditioner, [CAT]))
    assert not told.channels[1].any()
    assert not conditioner.null(told).channels.any()
    told.channels.sum().backward()
    reached = conditioner.vectors.weight.grad.abs().sum(1)
    assert (reached[:2] > 0).all()
    assert reached[2] == 0


def test_described_and_built_again() -> None:
    conditioner = small()
    again = build("conditioner", describe(conditioner))
    assert describe(again) == describe(conditioner)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ([{"label": "dog", "box": [0, 0, 1, 1]}], "unknown label 'dog'"),
        ([{"label": "cat", "box": [0, 0, 0, 1]}], "no box in the picture"),
        ([{"label": "cat"}], "is no object"),
        ("[{", "is no JSON"),
    ],
)
def test_the_same_is_refused_as_of_tokens(layout: Any, said: str) -> None:
    for conditioner in (small(), Boxes(["apple", "cat"], width=16, depth=1, heads=2, dim_head=8)):
        with pytest.raises(InvalidInput, match=said):
            conditioner.check(boxes=layout if isinstance(layout, str) else [layout])


def test_no_size_and_no_names() -> None:
    with pytest.raises(InvalidInput, match="size is not told"):
        small()(1, boxes=[APPLE])
    with pytest.raises(InvalidInput, match="distinct names"):
        BoxMap(["cat", "cat"])
    with pytest.raises(InvalidInput, match="0 channels"):
        small(channels=0)
