"""Hinted data: the hint is the detector's, chance follows the seed, and the conditioner reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.conditioners.hints import Hints
from sfumato.control.detectors.alpha import Alpha
from sfumato.control.detectors.canny import Canny
from sfumato.control.detectors.keypoints import Keypoints
from sfumato.control.detectors.palette import Palette
from sfumato.control.detectors.segmentation import Segmentation
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.hinted import Hinted
from sfumato.data.item import collate
from sfumato.data.scenes import Scenes
from sfumato.registry import build, describe

INNER = Emoji(("noto",), size=32, concepts=("red apple", "lemon"), flip=True)


@dataclass(frozen=True)
class Told:
    """Writes down what it is given, and draws a shade that follows the seed."""

    size: tuple[int, int] = (32, 32)
    channels: int = 1

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        LOG.append((given, seed))
        return torch.full((self.channels, *self.size), hash_of(seed))


LOG: list[tuple[Any, str | None]] = []


def hash_of(seed: str | None) -> float:
    return float(sum(map(ord, seed or "")) % 100) / 100


def test_the_hint_is_what_the_detector_sees_of_the_very_picture() -> None:
    data = Hinted(INNER, Canny())
    for index, seed in ((0, 0), (1, 5), (1, 6)):
        item = data.load(index, seed)
        assert torch.equal(item.image, INNER.load(index, seed).image)
        assert item.inputs["hint"].shape == (3, 32, 32)
        assert torch.equal(item.inputs["hint"], Canny()(item.image).expand(3, -1, -1))
        assert item.inputs["concept"] == INNER.load(index, seed).inputs["concept"]
    assert len(data) == len(INNER)
    assert data.labels("concept") == INNER.labels("concept")
    with pytest.raises(IndexError):
        data[2]


def test_chance_follows_from_seed_and_index_alone() -> None:
    data = Hinted(INNER, Canny(low=60, high=120, spread=4))
    first = [data.load(index, seed).inputs["hint"] for index in (0, 1) for seed in range(6)]
    again = Hinted(INNER, Canny(low=60, high=120, spread=4))
    other = [again.load(index, seed).inputs["hint"] for seed in reversed(range(6)) for index in (1, 0)]
    places = {
        (index, seed): n for n, (seed, index) in enumerate((s, i) for s in reversed(range(6)) for i in (1, 0))
    }
    for n, (index, seed) in enumerate((i, s) for i in (0, 1) for s in range(6)):
        assert torch.equal(first[n], other[places[index, seed]])
    # Of one picture, mirrored or not, the seeds make different hints.
    assert len({float(hint.sum()) for hint in first[:6]}) > 2
    LOG.clear()
    two = Hinted(Hinted(INNER, Told()), Told(), told="other")
    two.load(1, 3)
    assert len({seed for _, seed in LOG}) == 2  # each hint has a chance of its own


def test_several_hints_reach_the_conditioner_by_name() -> None:
    data = Hinted(Hinted(INNER, Canny(), told="edges"), Palette(4), told="colors")
    batch = collate([data.load(index, 2) for index in range(2)])
    hints = Hints(("edges", "colors"))(2, **{name: batch.inputs[name] for name in ("edges", "colors")}).hints
    assert [tuple(each.shape) for each in hints] == [(2, 3, 32, 32)] * 2
    torch.testing.assert_close(hints[0], (torch.stack(batch.inputs["edges"]) + 1) / 2)
    grey = Hinted(INNER, Canny(), colors=1)[0].inputs["hint"]
    assert grey.shape == (1, 32, 32)
    assert Hints(colors=1)(1, hint=grey).hints[0].shape == (1, 1, 32, 32)


def test_hints_of_scenes_are_made_of_what_is_known_of_them() -> None:
    scenes = Scenes(8, size=64)
    labels = tuple(scenes.labels("boxes"))
    points = Hinted(scenes, Keypoints(labels), of="boxes")
    masks = Hinted(scenes, Alpha(), of="whole", told="mask_hint")
    classes = Hinted(scenes, Segmentation(), of="semantic_map")
    for index in range(4):
        known = scenes[index].inputs
        expected = Keypoints(labels)({"boxes": known["boxes"], "size": [64, 64]})
        assert torch.equal(points[index].inputs["hint"], expected)
        left, top, width, height = known["boxes"][-1]["box"]
        x, y = int(64 * (left + width / 2)), int(64 * (top + height / 2))
        color = torch.tensor(Keypoints(labels).color_of(known["boxes"][-1]["label"]))
        assert torch.equal(((expected[:, y, x] + 1) * 127.5).round().int(), color.int())
        assert torch.equal(masks[index].inputs["mask_hint"][0] > 0, known["whole"].any(0))
        assert torch.equal(Segmentation().numbers(classes[index].inputs["hint"]), known["semantic_map"])


def test_the_transparency_of_emoji_is_their_own_and_mirrored_with_them() -> None:
    data = Hinted(INNER, Alpha(), of="alpha")
    black = Emoji(("noto",), size=32, concepts=("red apple", "lemon"), flip=True, background=(0, 0, 0))
    for seed in range(4):
        item = data.load(1, seed)
        # What shows the ground is what differs between two grounds.
        through = (item.image - black.load(1, seed).image).mean(0) / 2
        assert ((item.inputs["hint"][0] + 1) / 2 - (1 - through)).abs().max() < 0.06
    middle = Hinted(INNER, Keypoints(), of="alpha").load(1, 0).inputs["hint"]
    columns = (middle[0] > 0).nonzero()[:, 1]
    assert abs(float(columns.float().mean()) - 15.5) < 2
    with pytest.raises(InvalidInput, match="scenes has no transparency"):
        Hinted(Scenes(2), Alpha(), of="alpha")


def test_it_is_built_from_a_run_file_and_its_settings_are_in_the_fingerprint() -> None:
    settings = {
        "name": "hinted",
        "data": {"name": "emoji", "size": 32, "concepts": ["red apple", "lemon"]},
        "detector": {"name": "scribble", "edges": {"name": "canny", "low": 50.0}},
        "told": "sketch",
    }
    data = build("data", settings)
    assert describe(data) == settings
    assert data[0].inputs["sketch"].shape == (3, 32, 32)
    assert build("data", {"name": "hinted", "data": "emoji", "detector": "canny"}).detector == Canny()
    prints = {
        Hinted(INNER, Canny()).fingerprint(),
        Hinted(INNER, Canny(low=50)).fingerprint(),
        Hinted(INNER, Canny(), told="edges").fingerprint(),
        Hinted(Emoji(("noto",), size=32), Canny()).fingerprint(),
    }
    assert len(prints) == 4
    assert Hinted(INNER, Canny()).fingerprint() in prints


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"told": "a b"}, "hinted.told"),
        ({"colors": 2}, "hinted.colors"),
        ({"of": "boxs"}, "an item has no 'boxs'"),
        ({"detector": Told((16, 16))}, r"the hint \(1, 16, 16\) does not fit a picture of 32 x 32"),
        ({"detector": Told(channels=3), "colors": 1}, "does not fit .*set colors to 3"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        Hinted(INNER, **{"detector": Canny(), **settings})[0]
