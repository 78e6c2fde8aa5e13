import json

import pytest
import torch

from sfumato.conditioners.masked_image import MaskedImage
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.holes import Holes
from sfumato.data.item import collate
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel

INNER = Emoji(("noto",), size=24, concepts=("red apple", "lemon"), flip=True)


@pytest.fixture(scope="module")
def masks():
    data = Holes(INNER)
    return torch.stack([data.load(seed % 2, seed).inputs["mask"] for seed in range(3000)])[:, 0]


def test_a_quarter_of_the_holes_are_the_whole_picture(masks):
    assert 0.22 < (masks.mean((1, 2)) == 1).double().mean() < 0.28


def test_of_the_others_half_are_rectangles_and_half_ellipses_of_sides_spread_evenly(masks):
    rest = masks[masks.mean((1, 2)) < 1]
    rows, columns = rest.any(2).sum(1), rest.any(1).sum(1)
    area = rest.sum((1, 2)) / (rows * columns)
    large = (rows > 8) & (columns > 8)
    rectangles = area[large] == 1
    assert 0.45 < rectangles.double().mean() < 0.55
    round_ = area[large][~rectangles]
    assert abs(round_.mean() - torch.pi / 4) < 0.02
    for side in (rows, columns):
        counts = side.bincount(minlength=25)[1:].double()
        assert counts.min() > 0.6 * counts.mean()
        assert counts.max() < 1.5 * counts.mean()


def test_every_place_is_as_likely_but_for_the_edge(masks):
    """Holes lie inside the picture, so that the middle is covered more often; left and right alike."""
    rest = masks[masks.mean((1, 2)) < 1].mean(0)
    assert rest.min() > 0.002
    assert (rest - rest.flip(0)).abs().max() < 0.05
    assert (rest - rest.flip(1)).abs().max() < 0.05


def test_the_picture_is_told_and_nothing_hangs_on_order():
    data = Holes(INNER)
    first = data.load(1, 5)
    assert torch.equal(first.inputs["image"], INNER.load(1, 5).image)
    data.load(0, 4)
    again = Holes(INNER).load(1, 5)
    assert torch.equal(first.inputs["mask"], again.inputs["mask"])
    assert first.inputs["concept"] == "lemon" or first.inputs["concept"] == "red apple"
    assert not torch.equal(first.inputs["mask"], data.load(1, 6).inputs["mask"])


def test_a_conditioner_takes_its_batches():
    conditioner = MaskedImage(style="pixel")
    conditioner.bind(Pixel())
    batch = collate([Holes(INNER).load(index, 3) for index in range(2)])
    heeded = {name: batch.inputs[name] for name in ("image", "mask")}
    told = conditioner(2, **heeded).channels
    mask, shown = told[:, :1], told[:, 1:]
    assert torch.equal(mask, torch.stack(heeded["mask"]))
    assert torch.equal(shown, batch.image * (1 - mask))


def test_settings_fingerprint_and_description():
    for full in (-0.1, 1.1):
        with pytest.raises(InvalidInput, match="share"):
            Holes(INNER, full)
    data = Holes(INNER, 0.5)
    again = build("data", json.loads(json.dumps(describe(data))))
    assert again.fingerprint() == data.fingerprint()
    others = [Holes(INNER), Holes(Emoji(("noto",), size=24, concepts=("lemon",)), 0.5)]
    assert len({each.fingerprint() for each in [data, *others]}) == 3
    assert len(data) == 2
    assert data.labels("concept") == INNER.labels("concept")
    with pytest.raises(IndexError):
        data[2]
