"""Moved pictures: whole shifts and mirrorings are exact, and a hint moves with its picture."""

from __future__ import annotations

import pytest
import torch

from sfumato.control.detectors.alpha import Alpha
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.hinted import Hinted
from sfumato.data.moved import Moved, _sampled
from sfumato.data.scenes import Scenes

EMOJI = Emoji(size=32, concepts=("red apple", "lemon", "penguin"))
STILL = {"scale": 0.0, "turn": 0.0, "shift": 0.0, "mirrored": False}


def test_each_picture_is_there_once_as_it_is() -> None:
    data = Moved(EMOJI, times=3)
    assert len(data) == 3 * len(EMOJI)
    for index in range(len(EMOJI)):
        assert torch.equal(data[index].image, EMOJI[index].image)
        for turn in (1, 2):
            moved = data[index + turn * len(EMOJI)]
            assert moved.inputs == EMOJI[index].inputs
            assert (moved.image - EMOJI[index].image).abs().mean() > 0.05
    assert torch.equal(data.load(7, 1).image, data.load(7, 2).image)
    assert not torch.equal(data[6].image, data[6 + len(EMOJI)].image)
    assert data.fingerprint() not in (EMOJI.fingerprint(), Moved(EMOJI, times=2).fingerprint())


def test_what_is_not_moved_is_the_picture() -> None:
    """Up to the means of neighbours that sampling between pixels takes; a mirroring, too."""
    data = Moved(EMOJI, times=2, **STILL)  # type: ignore[arg-type]
    soft = torch.nn.functional.avg_pool2d(EMOJI[1].image, 3, 1, 1)
    assert (data[1 + len(EMOJI)].image - EMOJI[1].image).abs().max() < (soft - EMOJI[1].image).abs().max()
    flat = torch.full((3, 8, 8), 0.25)
    torch.testing.assert_close(_sampled(flat, torch.tensor([[-1.0, 0, 0], [0, 1, 0]]), 0.25), flat)


def test_a_shift_and_a_size_are_where_they_say() -> None:
    """A disc: its centre moves by what was asked, its area by the square of the zoom."""
    rows = torch.arange(64.0)
    disc = ((rows[:, None] - 31.5) ** 2 + (rows[None] - 31.5) ** 2 < 100).float()[None] * 2 - 1
    zoom, across, down = 1.5, 0.25, -0.125
    frame = torch.tensor([[1 / zoom, 0, -across / zoom], [0, 1 / zoom, -down / zoom]])
    made = (_sampled(disc, frame, -1.0)[0] + 1) / 2
    area = made.sum()
    assert area == pytest.approx(float((disc > 0).sum()) * zoom**2, rel=0.01)
    assert (made.sum(0) @ rows / area) == pytest.approx(31.5 + across * 32, abs=0.05)
    assert (made.sum(1) @ rows / area) == pytest.approx(31.5 + down * 32, abs=0.05)


def test_hints_move_with_their_pictures() -> None:
    data = Hinted(Moved(EMOJI, times=2), Alpha(), of="alpha")
    item = data[1 + len(EMOJI)]
    solid = (item.image < 0.86).any(0)
    # Of ink so thin that the picture is no longer white.
    hint = item.inputs["hint"][0] > -0.8
    assert (solid & hint).sum() / (solid | hint).sum() > 0.9
    assert (hint != (data[1].inputs["hint"][0] > 0)).float().mean() > 0.02
    with pytest.raises(InvalidInput, match="transparency"):
        Hinted(Moved(Scenes(count=2, size=32)), Alpha(), of="alpha")


@pytest.mark.parametrize("wrong", [{"times": 0}, {"scale": -1}, {"turn": 200}, {"shift": 2}])
def test_settings_that_are_none(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="moved"):
        Moved(EMOJI, **wrong)  # type: ignore[arg-type]
