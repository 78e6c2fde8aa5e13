import re

import pytest
import torch

from sfumato.conditioners.boxes import Boxes
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.emoji import Emoji
from sfumato.data.scenes import Scenes
from sfumato.encoders.word_piece import words
from sfumato.registry import build, describe

RELATIONS = "left of|right of|above|below|in front of|behind|close to"
SIZE = 48


@pytest.fixture(scope="module")
def data():
    return Scenes(count=300, size=SIZE)


@pytest.fixture(scope="module")
def scenes(data):
    return list(data)


def pixels(box):
    return [round(edge * SIZE) for edge in box]


def test_shapes_and_numbers(scenes):
    assert {len(s.inputs["objects"]) for s in scenes} == {1, 2, 3, 4}
    for image, inputs in scenes:
        n = len(inputs["objects"])
        assert image.shape == (3, SIZE, SIZE)
        assert image.abs().max() <= 1
        assert inputs["mask"].shape == (n, SIZE, SIZE)
        assert inputs["mask"].dtype == torch.bool
        assert inputs["depth"].shape == (SIZE, SIZE)
        assert len({o["concept"] for o in inputs["objects"]}) == n
        assert len({o["style"] for o in inputs["objects"]}) == 1


def test_masks_lie_in_their_boxes_and_do_not_overlap(scenes):
    for _, inputs in scenes:
        assert inputs["mask"].sum(0).max() <= 1
        for thing, mask in zip(inputs["objects"], inputs["mask"], strict=True):
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            x0, y0, x1, y1 = pixels(thing["box"])
            inside = torch.zeros_like(mask)
            inside[y0:y1, x0:x1] = True
            assert mask.any()
            assert not (mask & ~inside).any()


def test_layers_laid_on_each_other_are_the_picture(scenes):
    """But for edges, which let through what lies below; hidden parts are there too, in their own colours."""
    same, looked_at, hidden = 0, 0, []
    for image, inputs in scenes:
        again = torch.full_like(image, torch.nan)
        for mask, whole, layer in zip(inputs["mask"], inputs["whole"], inputs["layers"], strict=True):
            again[:, whole] = layer[:, whole]
            covered = whole & ~mask
            hidden.append((layer - image)[:, covered].abs().amax(0))
        off = (again - image)[:, inputs["mask"].any(0)]
        same, looked_at = same + int((off == 0).all(0).sum()), looked_at + off.shape[1]
    assert same > 0.7 * looked_at
    assert len(torch.cat(hidden)) > 1000
    assert (torch.cat(hidden) > 0.1).float().mean() > 0.8


def test_boxes_are_tight(scenes):
    """The object painted last is wholly visible, so its mask reaches every edge of its box."""
    for _, inputs in scenes:
        x0, y0, x1, y1 = pixels(inputs["objects"][-1]["box"])
        cut = inputs["mask"][-1][y0:y1, x0:x1]
        assert cut[0].any()
        assert cut[-1].any()
        assert cut[:, 0].any()
        assert cut[:, -1].any()


def test_depth_is_the_paint_order(scenes):
    for _, inputs in scenes:
        n = len(inputs["objects"])
        depth = torch.zeros(SIZE, SIZE)
        for order, mask in enumerate(inputs["mask"]):
            assert inputs["objects"][order]["order"] == order
            depth += mask * (order + 1) / n
        assert torch.allclose(inputs["depth"], depth)


def test_the_masked_pixels_show_the_object(data, scenes):
    """Laying the drawing itself into its box again gives the picture there."""
    for i in range(0, 300, 17):
        image, inputs = scenes[i]
        thing = inputs["objects"][-1]
        emoji = Emoji((thing["style"],), concepts=(thing["concept"],), size=64)
        x0, y0, x1, y1 = pixels(thing["box"])
        mask = inputs["mask"][-1][y0:y1, x0:x1]
        shown = image[:, y0:y1, x0:x1][:, mask].mean(1)
        own = torch.tensor(list(emoji.picture(0).get_flattened_data()), dtype=torch.float32)
        drawn = own[own[:, 3] >= 250][:, :3].mean(0) / 127.5 - 1
        assert (shown - drawn).abs().max() < 0.2, thing["concept"]


def test_relations_in_the_captions_are_true(scenes):
    checked = dict.fromkeys(RELATIONS.split("|"), 0)
    for _, inputs in scenes:
        by_name = {thing["concept"]: thing for thing in inputs["objects"]}
        caption, found = inputs["caption"], 0
        names = "|".join(sorted(map(re.escape, by_name), key=len, reverse=True))
        for first, word, second in re.findall(rf"({names}) ({RELATIONS}) (?:an? |the )?({names})", caption):
            a, b = by_name[first], by_name[second]
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = pixels(a["box"]), pixels(b["box"])
            apart = ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0
            true = {
                "left of": ax1 <= bx0,
                "right of": ax0 >= bx1,
                "above": ay1 <= by0,
                "below": ay0 >= by1,
                "in front of": not apart and a["order"] > b["order"],
                "behind": not apart and a["order"] < b["order"],
                "close to": not apart,
            }[word]
            assert true, caption
            checked[word] += 1
            found += 1
        assert found == len(by_name) - 1, caption
    assert min(checked.values()) > 5, checked


def test_who_is_in_front_hides_something(scenes):
    """Where the caption says in front of, pixels of the first show inside the box of the second."""
    seen = 0
    for _, inputs in scenes:
        if len(inputs["objects"]) != 2 or not re.search("in front of|behind", inputs["caption"]):
            continue
        x0, y0, x1, y1 = pixels(inputs["objects"][0]["box"])
        assert inputs["mask"][1][y0:y1, x0:x1].any()
        seen += 1
    assert seen > 5


def test_articles(scenes):
    for _, inputs in scenes:
        assert not re.search(r"\ba (?!eu)[aeio]|\ban [^aeioux ho]", inputs["caption"], re.I), inputs[
            "caption"
        ]
        assert "  " not in inputs["caption"]


def test_the_same_index_and_seed_make_the_same_scene(data, scenes):
    again = Scenes(count=300, size=SIZE)
    for i in (299, 0, 57):
        first, second = scenes[i], again.load(i, 0)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.inputs["mask"], second.inputs["mask"])
        assert first.inputs["caption"] == second.inputs["caption"]
        assert not torch.equal(first.image, again.load(i, 1).image)


def test_held_in_concepts_alone_are_composed(scenes):
    held = set(Emoji(split="held_out").labels("concept"))
    assert not {o["concept"] for s in scenes for o in s.inputs["objects"]} & held
    assert {o["concept"] for o in Scenes(split="held_out", fewest=4)[0].inputs["objects"]} <= held


def test_fixed_numbers_and_choices():
    data = Scenes(
        count=60,
        size=32,
        fewest=3,
        most=3,
        styles=("fluent 3d",),
        concepts=("lemon", "owl", "drum with drumsticks"),
    )
    for _, inputs in data:
        assert len(inputs["objects"]) == 3
        assert {o["style"] for o in inputs["objects"]} == {"fluent 3d"}
    assert len({s.inputs["caption"] for s in data}) > 30


def test_settings_that_cannot_be():
    for field in (
        {"count": 0},
        {"size": 8},
        {"fewest": 0},
        {"most": 5},
        {"fewest": 3, "most": 2},
        {"split": "all"},
    ):
        with pytest.raises(InvalidInput):
            Scenes(**field)
    with pytest.raises(InvalidInput, match="fewer concepts"):
        Scenes(concepts=("lemon", "owl"))
    with pytest.raises(NotFound, match="lemon"):
        Scenes(concepts=("lemmon",))


def test_described_and_built_again():
    data = Scenes(count=5, size=32, most=2, categories=None)
    assert build("data", describe(data)).fingerprint() == data.fingerprint()


def test_fingerprint():
    one = Scenes(size=32).fingerprint()
    assert one == Scenes(size=32).fingerprint()
    assert len({one, Scenes(size=64).fingerprint(), Scenes(size=32, most=2).fingerprint()}) == 3


@pytest.mark.parametrize("label", ["category", "concept"])
def test_boxes_and_maps_say_what_the_objects_and_masks_say(label):
    data = Scenes(count=20, size=SIZE, label=label)
    names = data.labels("semantic_map")
    assert names[0] == "ground"
    assert data.labels("boxes") == names[1:]
    for _, inputs in data:
        number = torch.zeros(SIZE, SIZE, dtype=torch.int64)
        for thing, box, mask in zip(inputs["objects"], inputs["boxes"], inputs["mask"], strict=True):
            x0, y0, width, height = box["box"]
            assert (x0, y0, x0 + width, y0 + height) == pytest.approx(thing["box"])
            assert box["label"] == thing[label]
            number += mask * names.index(thing[label])
        assert torch.equal(inputs["semantic_map"], number)


def test_boxes_labelled_by_concept_and_what_their_conditioner_makes_of_them():
    data = Scenes(count=20, size=32, concepts=("lemon", "owl", "kite", "cat"), label="concept")
    assert sorted(data.labels("boxes")) == ["cat", "kite", "lemon", "owl"]
    conditioner = Boxes(data.labels("boxes"), objects=4, vocabulary=1024, width=8, depth=1, heads=1).eval()
    for item in data:
        assert [box["label"] for box in item.inputs["boxes"]] == [
            o["concept"] for o in item.inputs["objects"]
        ]
        words = conditioner.words(item.inputs["boxes"])
        kinds = words[: 3 * len(item.inputs["boxes"]) : 3]
        assert [conditioner.names[kind] for kind in kinds] == [box["label"] for box in item.inputs["boxes"]]
    with pytest.raises(InvalidInput, match="category or concept"):
        Scenes(label="colour")


def test_the_phrases_of_captions_are_all_their_words(data, scenes):
    known = {word for phrase in data.labels("caption") for word in words(phrase)}
    for _, inputs in scenes:
        assert set(words(inputs["caption"])) <= known


def test_whole_masks_are_the_visible_and_what_later_things_hide() -> None:
    data = Scenes(count=40, size=48, fewest=2)
    hidden = 0
    for index in range(40):
        item = data[index]
        masks, whole = item.inputs["mask"], item.inputs["whole"]
        for order in range(len(masks)):
            above = whole[order + 1 :].any(0) if order + 1 < len(whole) else torch.zeros_like(whole[order])
            assert torch.equal(masks[order], whole[order] & ~above)
            hidden += int((whole[order] & above).sum())
            rows, columns = whole[order].any(1).nonzero(), whole[order].any(0).nonzero()
            x0, y0, x1, y1 = (round(edge * 48) for edge in item.inputs["objects"][order]["box"])
            assert (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) == (
                x0,
                y0,
                x1,
                y1,
            )
    assert hidden > 100
