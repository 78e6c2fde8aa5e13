"""The sheet of samples: what was told stands beside what was made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.data.emoji import Emoji
from sfumato.data.holes import Holes
from sfumato.data.low_res import LowRes
from sfumato.data.scenes import Scenes
from sfumato.interfaces.samples import samples, shown
from sfumato.model import Model
from sfumato.registry import build

EMOJI = Emoji(("fluent 3d",), size=16, concepts=("lemon", "red apple", "owl"), source="noto")
LIKE = torch.zeros(3, 16, 16)


def model_of(conditioner: Any, channels: int) -> Model:
    torch.manual_seed(0)
    network = {"name": "adm", "in_channels": 3 + channels, "channels": 32, "multipliers": [1], "blocks": 1}
    settings = {
        "network": {**network, "attention": []},
        "process": "flow",
        "prediction": "velocity",
        "conditioner": conditioner,
    }
    return Model.from_description(settings, {"size": [8, 8], "steps": 1})


def pixels(image: Any) -> Tensor:
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize(
    "conditioner, channels, data, name",
    [
        ("image", 3, EMOJI, "image"),
        ({"name": "low_res", "size": [16, 16], "factor": 4}, 3, LowRes(EMOJI, 4), "low_res"),
        ({"name": "masked_image", "style": "pixel"}, 4, Holes(EMOJI), "image"),
        ("depth", 1, Scenes(9, 16), "depth"),
        ({"name": "semantic_map", "classes": 6, "channels": 0}, 6, Scenes(9, 16), "semantic_map"),
    ],
)
def test_every_sample_stands_beside_what_it_was_told(
    conditioner: Any, channels: int, data: Any, name: str
) -> None:
    model, items = model_of(conditioner, channels), [data[index] for index in range(3)]
    sheet = pixels(samples(model, 5, items))
    assert sheet.shape == (3, 32, 4 * 2 * 16)
    for row in range(8):
        top, left = row // 4 * 16, row % 4 * 32
        inputs = items[row % 3].inputs
        said = {
            key: inputs[key] for key in (name, "mask") if key in inputs and key in model.conditioner.inputs
        }
        (seen,) = shown(said, LIKE)
        cell = sheet[:, top : top + 16, left : left + 16]
        assert (cell - seen).abs().max() < 0.01
    assert torch.equal(sheet, pixels(samples(model, 9, items)))


def test_a_hole_is_grey_and_a_small_picture_shows_its_pixels() -> None:
    picture, mask = torch.rand(3, 16, 16) * 2 - 1, torch.zeros(1, 16, 16)
    mask[:, 4:9] = 1
    (seen,) = shown({"image": picture, "mask": mask}, LIKE)
    assert torch.equal(seen, picture * (1 - mask))
    (large,) = shown({"low_res": picture[:, ::4, ::4]}, LIKE)
    assert torch.equal(large, picture[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_frames_lie_where_the_boxes_are_and_classes_differ_in_colour() -> None:
    layout = [{"label": "a", "box": [0.0, 0.0, 1.0, 1.0]}, {"label": "b", "box": [0.4, 0.4, 0.2, 0.2]}]
    (seen,) = shown({"boxes": layout}, LIKE)
    drawn = (seen != 1).any(0)
    assert drawn[0].all()
    assert drawn[:, 15].all()
    assert drawn[6, 6:10].all()
    assert not drawn[1:6, 1:15].any()
    (colors,) = shown({"semantic_map": torch.arange(16)[:, None].expand(16, 16)}, LIKE)
    assert len({tuple(color.tolist()) for color in colors[:, :, 0].T}) == 16
    (grey,) = shown({"image": LIKE}, LIKE[:1])
    assert grey.shape == (1, 16, 16)


def test_a_model_of_names_is_told_its_first_names_and_an_unconditional_one_nothing(tiny: Model) -> None:
    tiny.card["steps"] = 1
    items = [EMOJI[0]]
    sheet = pixels(samples(tiny, 1, items))
    assert sheet.shape == (3, 32, 64)
    made = build("conditioner", "nothing")
    assert pixels(
        samples(Model(model_of("nothing", 0).denoiser, made, tiny.space, tiny.card), 1, items)
    ).shape == (3, 32, 64)
