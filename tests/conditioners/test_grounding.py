"""Grounding: what is told of boxes and their words, and a control of them, joined, trained, used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.checkpoints import native
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.grounding import Grounding
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.conditioners.together import Together
from sfumato.control.gligen import Gligen
from sfumato.core.errors import InvalidInput
from sfumato.data.item import collate
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates
from sfumato.model import Model
from sfumato.training import train
from sfumato.training.progress import LossLog
from sfumato.training.run_file import Run

APPLE = {"label": "a red apple", "box": [0.25, 0.5, 0.25, 0.5]}
CAT = {"label": "cat", "box": [0.0, 0.0, 0.5, 0.125]}
SCENES: dict[str, Any] = {
    "name": "scenes", "count": 16, "size": 16, "most": 2, "label": "concept", "ground": "white",
    "fixed": True, "concepts": ["red apple", "banana", "green salad", "cookie"],
}  # fmt: skip


class Words:
    """Says a text by its length and its number of words."""

    inputs = ("prompt",)

    def whole(self, said: list[str]) -> torch.Tensor:
        return torch.tensor([[float(len(text)), float(len(text.split()))] for text in said])


def small() -> Grounding:
    made = Grounding(3)
    made.hear(Words())
    return made


def test_tokens_by_hand() -> None:
    said = small()(2, boxes=[[APPLE, CAT], None]).image_tokens
    assert said is not None
    assert said[0, 0].tolist() == [11.0, 3.0, 0.25, 0.5, 0.5, 1.0, 1.0]
    assert said[0, 1].tolist() == [3.0, 1.0, 0.0, 0.0, 0.5, 0.125, 1.0]
    assert not said[0, 2].any()
    assert not said[1].any()
    crop = small()(1, boxes=[APPLE, CAT], boxes_crop=[0.0, 0.5, 0.5, 0.5]).image_tokens
    assert crop is not None
    assert crop[0, 0].tolist() == [11.0, 3.0, 0.5, 0.0, 1.0, 1.0, 1.0]
    assert not crop[0, 1:].any()


def test_no_box_says_nothing_and_the_null_and_a_denial_no_object() -> None:
    told = small()
    assert told(2).image_tokens is None
    assert told.null(told(2)).image_tokens is None
    null, denied = told.null(told(2, boxes=[APPLE])), told(2, boxes=[APPLE], boxes_unsaid=True)
    for each in (null, denied):
        assert each.image_tokens is not None
        assert each.image_tokens.shape == (2, 3, 7)
        assert not each.image_tokens.any()


def test_what_is_refused() -> None:
    told = small()
    for given, words in (
        ([{"label": "", "box": [0, 0, 1, 1]}], "says nothing"),
        ([{"label": "cat", "box": [0.5, 0.5, 0, 1]}], "no box"),
        ([{"label": "cat", "box": [0, 0, 1, 1], "group": True}], "nothing is known of 'group'"),
        ([CAT] * 4, "4 objects, and there is room for 3"),
    ):
        with pytest.raises(InvalidInput, match=words):
            told.check(boxes=given)
    with pytest.raises(InvalidInput, match="no part beside it reads words"):
        Together((Grounding(3), ClassLabel({"kind": ["cat"]})))


def test_words_are_clips_state_at_the_end_of_a_text() -> None:
    """As transformers' pooler_output, which GLIGEN was trained with."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = ClipText(width=16, depth=2, heads=2, length=20)
    told = TextCLIP((PromptStates(text),))
    config = CLIPTextConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=20,
        eos_token_id=49407,
    )
    theirs = CLIPTextModel(config).eval()
    ours = {name.removeprefix("text_model."): tensor for name, tensor in text.state_dict().items()}
    theirs.load_state_dict(ours)
    said = ["a red apple", "cat"]
    ids, _ = told.encoders[0]._laid([told.encoders[0].chunks(each)[0] for each in said])
    with torch.no_grad():
        torch.testing.assert_close(told.whole(said), theirs(ids).pooler_output, rtol=1e-5, atol=1e-5)


def test_boxes_are_learnt_by_the_control_alone_and_joined_by_name(
    text_unet: Callable[..., Model], tmp_path: Path
) -> None:
    place = str(tmp_path / "start")
    native.save(text_unet(), tmp_path / "start")
    settings: dict[str, Any] = {
        "start": place,
        "controls": {"boxes": "gligen"},
        "data": SCENES,
        "batch": 16,
        "steps": 8,
        "optimizer": {"rate": 1e-2},
        "ema": [{"decay": 0.9}],
        "validation": {"every": 4, "items": 8, "bands": 2, "shuffled": ["boxes"]},
        "card": {"size": [16, 16], "steps": 4},
    }
    asked = Run.from_dict(settings)
    made, old, data = asked.build_model(), sfumato.load(place), asked.build_data()
    names = {name for name, _ in asked.build_objective().parameters(made)}
    assert names
    assert all(name.startswith("network.control.") for name in names)
    boxes = collate([data.load(i, 0) for i in range(2)]).inputs["boxes"]
    sizes: dict[str, Any] = {"size": (16, 16), "steps": 4}
    fresh = sfumato.generate(made, prompt="apples", seeds=[1, 2], boxes=boxes).tensor
    assert torch.equal(fresh, sfumato.generate(old, prompt="apples", seeds=[1, 2], **sizes).tensor)
    train(asked, tmp_path / "run")
    seen = [line["heeded"] for line in LossLog.read(tmp_path / "run") if "heeded" in line]
    assert 0 < seen[0]["growth"] < seen[-1]["growth"]
    joined = sfumato.load(f"{place} +boxes={tmp_path / 'run'}")
    again = sfumato.load(tmp_path / "run")
    said: dict[str, Any] = {"prompt": "apples", "seed": 1, **sizes}
    for guidance in (1.0, 3.0):
        one, other = (
            sfumato.generate(each, boxes=boxes[0], guidance=guidance, **said).tensor
            for each in (again, joined)
        )
        assert torch.equal(one, other)
    assert not torch.allclose(one, sfumato.generate(again, guidance=3.0, **said).tensor, atol=1e-3)
    with pytest.raises(InvalidInput, match="is no Gligen alone"):
        sfumato.grounded(old, old)
    with pytest.raises(InvalidInput, match="already"):
        sfumato.grounded(again, Gligen.of(old.denoiser.network, 16, 16))
