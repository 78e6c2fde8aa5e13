"""Boxes: the words of latent diffusion's layouts, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sfumato.conditioners.boxes import Boxes, mirrored
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import Velocity
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.betas import Betas
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel

APPLE = {"label": "apple", "box": [0.25, 0.5, 0.25, 0.5]}
CAT = {"label": "cat", "box": [0.0, 0.0, 0.5, 0.1]}


def small(**settings: Any) -> Boxes:
    torch.manual_seed(0)
    said = {"names": ["apple", "cat", "kite"], "width": 16, "depth": 1, "heads": 2, "dim_head": 8}
    return Boxes(**{**said, **settings}).eval()


def test_words_by_hand() -> None:
    """n = ⌊√8192⌋ = 90: a corner (x, y) is round(89 y) · 90 + round(89 x)."""
    words = small().words([APPLE, {**CAT, "group": True, "inside": True}], [0.0, 0.0, 1.0, 0.75])
    assert len(words) == 92
    assert words[:3] == [0, 44 * 90 + 22, 89 * 90 + 44]
    assert words[3:6] == [1 + 3 * (1 + 8), 0, 9 * 90 + 44]
    assert words[6:90] == [8191] * 84
    assert words[90:] == [0, 67 * 90 + 89]


def test_objects_outside_the_crop_are_left_out_and_boxes_are_cut_at_the_edge() -> None:
    assert small().words([APPLE], [0.5, 0.0, 0.5, 1.0])[:3] == [8191] * 3
    assert small().words([APPLE], [0.4, 0.0, 0.5, 1.0])[:3] != [8191] * 3
    wide = {"label": "apple", "box": [-0.5, 0.5, 2.0, 2.0]}
    assert small().words([wide])[1:3] == [44 * 90, 89 * 90 + 89]


def test_a_mirror() -> None:
    (seen,) = mirrored([APPLE])
    assert seen == {"label": "apple", "box": [0.5, 0.5, 0.25, 0.5]}
    assert mirrored(mirrored([CAT]))[0]["box"] == pytest.approx(CAT["box"])


def test_published_size() -> None:
    """58.86 million with the layer to words, 305 million beside the network of 246.28."""
    with torch.device("meta"):
        boxes = Boxes([f"{i}" for i in range(300)], width=512, depth=16, dim_head=64, logits=True)
        network = SDUNet.published("ldm_layout")
    own, others = (sum(p.numel() for p in part.parameters()) for part in (boxes, network))
    assert round(own / 1e6, 2) == 58.86
    assert round((own + others) / 1e6) == 305


def test_rows_and_nulls() -> None:
    boxes = small()
    told = boxes(3, boxes=[[APPLE], None, json.dumps([CAT, APPLE])])
    assert told.tokens is not None
    assert torch.equal(told.tokens[:1], boxes(1, boxes=[APPLE]).tokens)  # type: ignore[arg-type]
    torch.testing.assert_close(told.tokens[2:], boxes(1, boxes=[CAT, APPLE]).tokens, rtol=0, atol=1e-6)
    null = boxes.null(told)
    torch.testing.assert_close(null.tokens[1], told.tokens[1], rtol=0, atol=1e-6)  # type: ignore[index]
    assert (null.tokens[0] - told.tokens[0]).abs().max() > 1e-3  # type: ignore[index]
    dropped = told.where(torch.tensor([True, True, False]), null).tokens
    torch.testing.assert_close(dropped[2], told.tokens[1], rtol=0, atol=1e-6)  # type: ignore[index]


def test_the_order_is_any_while_training_alone() -> None:
    boxes = small()
    assert boxes.words([APPLE, CAT])[0] == 0
    boxes.train()
    torch.manual_seed(0)
    assert {boxes.words([APPLE, CAT])[0] for _ in range(20)} == {0, 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"label": "aple", "box": APPLE["box"]}], "did you mean apple"),
        ([{"label": "apple"}], "is no object"),
        ([{**APPLE, "colour": "red"}], "nothing is known of 'colour'"),
        ([{**APPLE, "box": [0.2, 0.2, 0.0, 0.5]}], "is no box"),
        ([{**APPLE, "box": [1.2, 0.2, 0.1, 0.5]}], "is no box"),
        ([{**APPLE, "box": [0.2, 0.2, float("nan"), 0.5]}], "is no box"),
        ([{**APPLE, "box": [0.2, 0.2, 0.5]}], "is no box"),
        ([APPLE] * 31, "31 objects, and there is room for 30"),
        ("[{", "is no JSON"),
        ('{"label": 3}', "is no list"),
        (7, "is no list"),
    ],
)
def test_what_is_no_layout_is_refused(given: Any, said: str) -> None:
    for rows in (given, [given]):
        with pytest.raises(InvalidInput, match=said):
            small().check(boxes=rows)


def test_settings() -> None:
    for wrong in ({"names": []}, {"names": ["a", "a"]}, {"objects": 0}, {"vocabulary": 40}):
        with pytest.raises(InvalidInput, match="boxes"):
            small(**wrong)
    settings = describe(small())
    assert describe(build("conditioner", settings)) == settings
    with pytest.raises(InvalidInput, match="no such input"):
        small().check(prompt="an apple")


def test_a_model_generates_by_boxes() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"multipliers": (1,), "blocks": 1, "attention": (1,), "heads": 2, "tokens": 16}
    network = SDUNet(in_channels=3, out_channels=3, channels=32, **sizes)
    for weight in [each for each in network.parameters() if not each.any()]:
        torch.nn.init.normal_(weight, std=0.3)
    # Noise would be divided by an alpha of .07 at first, and the rounding of unlike machines with it.
    denoiser = NetworkDenoiser(network, Betas(), Velocity()).eval()
    model = Model(denoiser, small(objects=4), Pixel(), {"size": [16, 16], "steps": 2})
    said: dict[str, Any] = {"guidance": 4.0}
    one = generate(model, boxes=[APPLE, CAT], seed=3, **said).tensor
    for other in ([APPLE], json.dumps([CAT])):
        assert (generate(model, boxes=other, seed=3, **said).tensor - one).abs().max() > 1e-4
    both = generate(model, boxes=[[CAT], [APPLE, CAT]], seeds=[5, 3], **said).tensor
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-4)
    with pytest.raises(InvalidInput, match="room for 4"):
        generate(model, boxes=[CAT] * 5, **said)
