"""Regions: boxes and masks laid over pictures, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.core.region import Region
from sfumato.registry import describe


def test_a_box_is_its_pixels_whatever_lies_beyond() -> None:
    laid = Region((1, -2, 9, 2)).over((3, 4))
    assert laid[0, 0].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]


def test_feathers_rise_inside() -> None:
    row = Region((3, 0, 12, 5), feather=3).over((5, 12))[0, 0, 2]
    torch.testing.assert_close(row, torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]))


def test_masks_are_tensors_or_read_and_resized() -> None:
    mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    wanted = torch.zeros(4, 4)
    wanted[:2, 2:] = 1
    assert torch.equal(Region(mask=mask).over((4, 4))[0, 0], wanted)
    assert torch.equal(Region(mask="m").over((4, 4), lambda given: mask[None, None])[0, 0], wanted)
    with pytest.raises(InvalidInput, match="str is no tensor"):
        Region(mask="m").over((4, 4))


def test_places_have_the_mean_of_their_pixels() -> None:
    laid = Region((0, 0, 3, 4)).places((4, 8), (2, 4))[0, 0]
    assert laid.tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0, 0]]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"box": (0, 0, 1, 1), "mask": "m"}, {"box": (2, 0, 2, 1)}, {"box": (0, 0, 1, 1), "feather": -1}],
)
def test_regions_that_are_none(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match="region"):
        Region(**wrong)


def test_nothing_in_the_picture_and_descriptions() -> None:
    with pytest.raises(InvalidInput, match="no pixel of a picture of 4 x 3"):
        Region((4, 0, 9, 9)).over((3, 4))
    assert describe(Region((0, 1, 2, 3))) == {"box": [0, 1, 2, 3]}
