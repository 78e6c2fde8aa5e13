import json

import pytest
import torch
import torch.nn.functional as F

from sfumato.conditioners.low_res import LowRes as Conditioner
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.holes import Holes
from sfumato.data.item import collate
from sfumato.data.low_res import LowRes
from sfumato.registry import build, describe

INNER = Emoji(("fluent 3d",), size=32, concepts=("red apple", "lemon"))


def test_small_copies_are_what_the_conditioner_makes_of_the_large_picture():
    conditioner = Conditioner(size=(32, 32), factor=4)
    batch = collate([LowRes(INNER, 4)[index] for index in range(2)])
    assert batch.inputs["low_res"][0].shape == (3, 8, 8)
    of_small = conditioner(2, low_res=batch.inputs["low_res"]).channels
    of_large = conditioner(2, low_res=list(batch.image)).channels
    torch.testing.assert_close(of_small, of_large)


def test_bicubic_is_antialiased_and_stays_in_range():
    item = LowRes(INNER, 4, "bicubic")[1]
    wanted = F.interpolate(item.image[None], (8, 8), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    assert torch.equal(item.inputs["low_res"], wanted)
    assert not torch.equal(item.inputs["low_res"], LowRes(INNER, 4)[1].inputs["low_res"])


def test_data_sets_stand_around_each_other():
    data = LowRes(Holes(INNER), 2)
    assert {"low_res", "mask", "image", "concept"} <= set(data[0].inputs)
    again = build("data", json.loads(json.dumps(describe(data))))
    assert again.fingerprint() == data.fingerprint() != LowRes(INNER, 2).fingerprint()


def test_sides_that_do_not_divide_are_named():
    with pytest.raises(InvalidInput, match="32 x 32 does not divide by 5"):
        LowRes(INNER, 5)[0]
    with pytest.raises(InvalidInput, match="factor"):
        LowRes(INNER, 0)
