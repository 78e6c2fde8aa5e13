"""Every pair of conditioners that may stand together says what each says alone, nulls row for row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.conditioners.box_map import BoxMap
from sfumato.conditioners.boxes import Boxes
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.class_token import ClassToken
from sfumato.conditioners.depth import Depth
from sfumato.conditioners.hints import Hints
from sfumato.conditioners.image import Image
from sfumato.conditioners.image_clip import ImageCLIP
from sfumato.conditioners.low_res import LowRes
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.noisy_low_res import NoisyLowRes
from sfumato.conditioners.semantic_map import SemanticMap
from sfumato.conditioners.sizes import Sizes
from sfumato.conditioners.text_draft import TextDraft
from sfumato.conditioners.text_small import TextSmall
from sfumato.conditioners.together import Together
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.encoders import text_small
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.word_piece import WordPiece
from sfumato.generation.generate import generate
from sfumato.generation.task import conditions
from sfumato.model import Model
from sfumato.registry import names
from sfumato.spaces.pixel import Pixel

SLOTS = ("vector", "channels", "draft", "image_tokens")


def map_of(seed: int, channels: int = 3) -> Tensor:
    return 2 * Noise([seed]).uniform((1, channels, 8, 8), "picture")[0].float() - 1


def text() -> TextSmall:
    return TextSmall(text_small.TextSmall(WordPiece.of(["a red cat"]), 16, 1, 2, 8, 12)).eval()


LAYOUTS = [[{"label": "cat", "box": [0, 0, 0.5, 1]}], [{"label": "dog", "box": [0.2, 0.1, 0.5, 0.5]}]]
KINDS: dict[str, tuple[Callable[[], Any], dict[str, list[Any]], dict[str, Any]]] = {
    "boxes": (
        lambda: Boxes(["cat", "dog"], 2, 64, 16, 1, 2, 8).eval(),
        {"boxes": LAYOUTS},
        {"tokens": "null"},
    ),
    "box_map": (
        lambda: BoxMap(["cat", "dog"], 3).eval(),
        {"boxes": LAYOUTS, "size": [(8, 8), (8, 8)]},
        {"channels": 0.0},
    ),
    "class_label": (
        lambda: ClassLabel({"label": ["cat", "dog"]}, null_row=True),
        {"label": ["cat", None]},
        {"vector": torch.tensor([0.0, 0, 1])},
    ),
    "class_token": (
        lambda: ClassToken({"kind": ["sun", "moon"]}, 16).eval(),
        {"kind": ["sun", None]},
        {},
    ),
    "depth": (Depth, {"depth": [map_of(1, 1), map_of(2, 1)]}, {"channels": "kept"}),
    "hints": (Hints, {"hint": [map_of(10), map_of(11)]}, {}),
    "image": (Image, {"image": [map_of(3), map_of(4)]}, {"channels": 0.0}),
    "image_clip": (
        lambda: ImageCLIP(ClipImage(8, 4, 16, 1, 2, projection=3), strength=0.5).eval(),
        {"image_prompt": [map_of(12), None]},
        {"image_tokens": torch.tensor([[[0, 0, 0, 0.5]], [[0, 0, 0, 0]]])},
    ),
    "low_res": (lambda: LowRes((8, 8), 1), {"low_res": [map_of(3), map_of(4)]}, {"channels": "kept"}),
    "masked_image": (
        lambda: MaskedImage("pixel"),
        {"image": [map_of(5), map_of(6)], "mask": [(map_of(7, 1) > 0).float()] * 2},
        {"channels": "kept"},
    ),
    "noisy_low_res": (
        lambda: NoisyLowRes().eval(),
        {"low_res": [map_of(8), map_of(9)], "noise_level": [3, 30]},
        {"channels": "kept", "vector": "kept"},
    ),
    "semantic_map": (
        lambda: SemanticMap(4, 2).eval(),
        {"semantic_map": [torch.arange(64).view(8, 8) % 4, torch.ones(8, 8, dtype=torch.long)]},
        {"channels": 0.0},
    ),
    "sizes": (lambda: Sizes((8, 8), 4), {"crop": [(0, 3), (1, 0)]}, {"vector": "kept"}),
    "text_draft": (
        lambda: TextDraft(text().encoder, shape=(3, 8, 8), hidden=8).eval(),
        {"prompt": ["a cat", None]},
        {"draft": 0.0, "vector": "empty"},
    ),
    "text_small": (text, {"prompt": ["a cat", None]}, {}),
}
"""By name: a conditioner, two rows it is told, and what its null makes of each slot it fills."""

ELSEWHERE = {"grounding", "augmented", "nothing", "text_clip", "together"}
"""Tried in tests of their own; CLIP's text fills slots as the small text does."""


def made(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        conditioner = KINDS[name][0]()
    if hasattr(conditioner, "bind"):
        conditioner.bind(Pixel(multiple=2))
    return conditioner


def pairs() -> list[tuple[str, str]]:
    """All of which no two heed the same input or take what is left of the same slot."""
    found = []
    for pair in itertools.permutations(sorted(KINDS), 2):
        parts = [made(name) for name in pair]
        inputs = [set(part.inputs) - {"size"} for part in parts]
        greedy = [
            {slot for slot, share in getattr(part, "shares", {}).items() if share is None} for part in parts
        ]
        beside = {"box_map", "depth", "semantic_map", "image", "masked_image"}
        bare = "low_res" in pair and beside & set(pair)
        if not inputs[0] & inputs[1] and not greedy[0] & greedy[1] and not bare:
            found.append(pair)
    return found


def share(condition: Condition, slot: str, length: int, last: bool) -> Tensor:
    whole = getattr(condition, slot)
    return whole[:, whole.shape[1] - length :] if last else whole[:, :length]


def words(condition: Condition, row: int) -> Tensor:
    """The tokens of a row that are attended to; those of an attention have no order but their own."""
    if condition.tokens is None:
        return torch.zeros(0, 16)
    return condition.tokens[row] if condition.mask is None else condition.tokens[row][condition.mask[row]]


def test_every_conditioner_is_tried() -> None:
    assert set(names("conditioner")) - ELSEWHERE <= set(KINDS)
    assert len(pairs()) >= 60


@pytest.mark.parametrize("pair", pairs(), ids="+".join)
def test_two_say_what_each_says_alone(pair: tuple[str, str]) -> None:
    parts = [made(name) for name in pair]
    rows = {key: value for name in pair for key, value in KINDS[name][1].items()}
    both = Together(tuple(parts))
    with torch.no_grad():
        said = both(2, **rows)
        null = both.null(said)
        dropped = said.where(torch.tensor([True, False]), null)
        alone = [part(2, **KINDS[name][1]) for name, part in zip(pair, parts, strict=True)]
        unsaid = [part.null(each) for part, each in zip(parts, alone, strict=True)]
    for row in range(2):
        for whole, each in ((said, alone), (null, unsaid), (dropped, unsaid if row else alone)):
            assert torch.equal(words(whole, row), torch.cat([words(one, row) for one in each]))
    for number, name in enumerate(pair):
        for slot in SLOTS:
            mine, other = (getattr(alone[place], slot) for place in (number, 1 - number))
            if mine is None:
                continue
            length, last = mine.shape[1], bool(number) and other is not None
            assert getattr(said, slot).shape[1] == length + (0 if other is None else other.shape[1])
            assert torch.equal(share(said, slot, length, last), mine)
            forgotten = share(null, slot, length, last)
            assert torch.equal(forgotten, getattr(unsaid[number], slot))
            _as_told(KINDS[name][2][slot], forgotten, mine)
            assert torch.equal(share(dropped, slot, length, last)[0], mine[0])
            assert torch.equal(share(dropped, slot, length, last)[1], forgotten[1])


def _as_told(rule: Any, null: Tensor, mine: Tensor) -> None:
    """The null as it is meant to be, not only as the conditioner makes it."""
    if isinstance(rule, str):
        # The second row of a text is the empty one.
        torch.testing.assert_close(null, {"kept": mine, "empty": mine[1:].expand_as(mine)}[rule])
    else:
        assert torch.equal(null, torch.as_tensor(rule).expand_as(null))


@pytest.mark.parametrize(
    "pair", [("text_small", "image"), ("class_label", "masked_image"), ("text_small", "depth")]
)
def test_a_negative_keeps_what_is_no_matter_of_opinion(pair: tuple[str, str]) -> None:
    """As generate says both sides to the conditioner: kept inputs on both, the rest as said or unsaid."""
    parts = [made(name) for name in pair]
    both = Together(tuple(parts))
    rows = {key: value for name in pair for key, value in KINDS[name][1].items()}
    against = {"text_small": {"prompt": ["red", "a"]}, "class_label": {"label": ["dog", "cat"]}}[pair[0]]
    with torch.no_grad():
        condition, null = conditions(Model(None, both, Pixel(multiple=2)), 2, rows, against)  # type: ignore[arg-type]
        assert torch.equal(condition.channels, null.channels)  # type: ignore[arg-type]
        alone = parts[0](2, **against)
        slot = "tokens" if pair[0] == "text_small" else "vector"
        assert torch.equal(getattr(null, slot), getattr(alone, slot))
        assert not torch.equal(getattr(null, slot), getattr(condition, slot))


def test_a_class_stands_beside_sizes_in_one_vector() -> None:
    """As SDXL's pooled text does; and a network of that width is told both."""
    both = Together((ClassLabel({"label": ["cat", "dog"]}), Sizes((8, 8), 4)))
    said = both(2, label=["dog", None], crop=[(1, 2), (3, 4)])
    assert said.vector is not None
    assert said.vector[:, :2].tolist() == [[0, 1], [0, 0]]
    null = both.null(said).vector
    assert torch.equal(null, torch.cat((torch.zeros(2, 2), said.vector[:, 2:]), 1))
    assert both.lists == ("original_size", "crop", "target_size", "size")
    assert both.labels == {"label": ["cat", "dog"]}
    two = Together((ClassLabel({"label": ["cat"]}), ClassLabel({"style": ["noto"]}, null_row=True)))
    assert two.null(two(1, label="cat", style="noto")).vector.tolist() == [[0, 0, 1]]
    with pytest.raises(InvalidInput, match="heed the same input"):
        Together((Depth(), Depth()))


def test_two_guided_at_once_in_a_model(model_of: Callable[..., Model]) -> None:
    """A class and a map, guided against another class: the map stays on both sides."""
    both = Together((ClassLabel({"label": ["cat", "dog"]}), Depth(), SemanticMap(4, 2)))
    model = model_of(both, 3, Pixel(multiple=2), classes=2)
    deep, numbers = map_of(1, 1)[0], torch.arange(64).view(8, 8) % 4
    told = {"depth": deep, "semantic_map": numbers, "size": (8, 8), "seed": 2}
    same = generate(model, label="cat", negative={"label": "cat"}, guidance=5.0, **told).tensor
    alone = generate(model, label="cat", guidance=[], **told).tensor
    torch.testing.assert_close(same, alone, rtol=0, atol=1e-3)
