"""Key points: they land where they are told, in the colours told, whatever layout tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.control.detectors.keypoints import LIMBS, Keypoints, limb_color
from sfumato.control.detectors.skeletons import BODY
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.scenes import Scenes

OPENPOSE = (
    "ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 00ff55 00ffaa 00ffff 00aaff 0055ff 0000ff 5500ff aa00ff"
)
COLORS = [tuple(bytes.fromhex(each)) for each in (OPENPOSE + " ff00ff ff00aa ff0055").split()]
COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
PERSON = {
    "nose": (250, 70),
    "neck": (250, 140),
    "right_shoulder": (190, 140),
    "right_elbow": (150, 210),
    "right_wrist": (120, 280),
    "left_shoulder": (310, 140),
    "left_elbow": (350, 210),
    "left_wrist": (400, 150),
    "right_hip": (215, 280),
    "right_knee": (210, 370),
    "right_ankle": (200, 470),
    "left_hip": (285, 280),
    "left_knee": (300, 370),
    "left_ankle": (310, 470),
    "right_eye": (235, 55),
    "left_eye": (265, 55),
    "right_ear": (215, 65),
    "left_ear": (285, 65),
}


def flat(names: Any, person: dict[str, tuple[float, float]] = PERSON, scale: float = 1) -> list[float]:
    found: list[float] = []
    for name in names:
        found += [*(scale * value for value in person[name]), 1] if name in person else [0, 0, 0]
    return found


def openpose(**more: Any) -> dict[str, Any]:
    return {"people": [{"pose_keypoints_2d": flat(BODY)}], "size": [512, 512], **more}


def color(hint: Tensor, x: float, y: float) -> tuple[int, ...]:
    return tuple(((hint[:, int(y), int(x)] + 1) * 127.5).round().int().tolist())


def test_joints_are_where_they_are_told_in_openposes_colours() -> None:
    hint = Keypoints()(openpose())
    assert hint.shape == (3, 512, 512)
    for number, name in enumerate(BODY):
        x, y = PERSON[name]
        assert color(hint, x, y) == COLORS[number]
        for dx, dy in ((3, 0), (-3, 0), (0, 3), (0, -3)):
            assert color(hint, x + dx, y + dy) == COLORS[number]
    assert color(hint, 10, 10) == (0, 0, 0)


def test_limbs_join_the_right_joints_dimmed_and_four_pixels_thick_at_their_middle() -> None:
    hint = Keypoints()(openpose())
    shoulder, elbow = PERSON["right_shoulder"], PERSON["right_elbow"]
    assert LIMBS[2] == (BODY.index("right_shoulder"), BODY.index("right_elbow"))
    middle = ((shoulder[0] + elbow[0]) / 2, (shoulder[1] + elbow[1]) / 2)
    dimmed = tuple(int(0.6 * value) for value in COLORS[2])
    assert color(hint, *middle) == dimmed
    length = torch.tensor([elbow[0] - shoulder[0], elbow[1] - shoulder[1]]).float().norm()
    across = (-(elbow[1] - shoulder[1]) / length, (elbow[0] - shoulder[0]) / length)
    for off, seen in ((3, True), (6, False), (-3, True), (-6, False)):
        place = (middle[0] + off * across[0], middle[1] + off * across[1])
        assert (color(hint, *place) == dimmed) is seen
    pairs = {tuple(sorted((BODY[a], BODY[b]))) for a, b in LIMBS}
    assert len(pairs) == 17
    assert {("left_hip", "neck"), ("left_ear", "left_eye"), ("left_elbow", "left_wrist")} <= pairs
    assert [limb_color(number) for number in range(18)] == COLORS


def test_every_layout_says_the_same_person() -> None:
    expected = Keypoints()(openpose())
    without = {
        name: place for name, place in PERSON.items() if name != "neck"
    }  # in the middle of the shoulders
    coco = {"keypoints": [v * 2 if n % 3 == 2 else v for n, v in enumerate(flat(COCO.split(), without))]}
    images = [{"id": 1, "height": 512, "width": 512}]
    assert torch.equal(Keypoints()({"annotations": [{**coco, "image_id": 1}], "images": images}), expected)
    assert torch.equal(Keypoints()([{**coco, "score": 0.9}]), expected)
    assert torch.equal(
        Keypoints()({"annotations": [{"keypoints": flat(BODY)}], "size": [512, 512]}), expected
    )
    wide = [*flat(BODY[:8]), 250, 280, 1, *flat(BODY[8:]), *([7, 7, 1] * 6)]
    assert torch.equal(Keypoints()(openpose(people=[{"pose_keypoints_2d": wide}])), expected)
    fractions = {"people": [{"pose_keypoints_2d": flat(BODY, scale=1 / 512)}]}
    assert torch.equal(Keypoints()({**fractions, "canvas_width": 512, "canvas_height": 512}), expected)
    assert torch.equal(Keypoints(size=(512, 512))(fractions), expected)


def test_a_file_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "pose.json").write_text(json.dumps(openpose()))
    assert torch.equal(Keypoints()(tmp_path / "pose.json"), Keypoints()(openpose()))
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(InvalidInput, match="no JSON"):
        Keypoints()(str(tmp_path / "no.json"))
    with pytest.raises(NotFound, match="no such file"):
        Keypoints()(tmp_path / "none.json")


def test_what_is_not_seen_is_not_drawn_nor_any_limb_to_it() -> None:
    person = flat(BODY)
    wrist = 3 * BODY.index("right_wrist")
    person[wrist + 2] = 0.01  # below the confidence asked for
    elbow = PERSON["right_elbow"]
    hint = Keypoints()(openpose(people=[{"pose_keypoints_2d": person}]))
    assert color(hint, *PERSON["right_wrist"]) == (0, 0, 0)
    assert color(hint, (120 + elbow[0]) / 2, (280 + elbow[1]) / 2) == (0, 0, 0)
    assert color(hint, *elbow) == COLORS[3]
    loose = Keypoints(confidence=0)(openpose(people=[{"pose_keypoints_2d": person}]))
    assert torch.equal(loose, Keypoints()(openpose()))
    assert Keypoints()({"people": [{"pose_keypoints_2d": [0] * 54}]}).max() == -1
    assert Keypoints()({"people": []}).max() == -1


def test_hands_and_faces() -> None:
    hand = [value for n in range(21) for value in (100 + 5 * n, 300 + 3 * n, 1)]
    face = [value for n in range(70) for value in (200 + n, 50 + n, 1)]
    person = {"hand_left_keypoints_2d": hand, "face_keypoints_2d": face}
    hint = Keypoints()(openpose(people=[person]))
    for n in range(21):
        assert color(hint, 100 + 5 * n, 300 + 3 * n) == (0, 0, 255)
    assert color(hint, 230, 80) == (255, 255, 255)
    spread = [0.0] * 63
    spread[:3], spread[27:30] = [100, 100, 1], [180, 100, 1]  # the wrist and the middle finger's first joint
    hint = Keypoints()(openpose(people=[{"hand_right_keypoints_2d": spread}]))
    # The ninth of twenty bones: hue 8 / 20, between green and turquoise.
    assert color(hint, 140, 99) == (0, 255, 102)


def test_sizes_scale_what_is_drawn() -> None:
    small = Keypoints()({"people": [{"pose_keypoints_2d": flat(BODY, scale=1 / 8)}], "size": [64, 64]})
    assert small.shape == (3, 64, 64)
    assert color(small, PERSON["left_knee"][0] / 8, PERSON["left_knee"][1] / 8) == COLORS[12]
    assert 60 < int((small > -1).any(0).sum()) < 400
    wide = Keypoints()({"points": [[0.5, 0.25]], "canvas_width": 200, "canvas_height": 100})
    assert wide.shape == (3, 100, 200)
    rows, columns = (wide[0] > 0).nonzero().T
    assert float(rows.float().mean()) == pytest.approx(24.5, abs=0.6)
    assert float(columns.float().mean()) == pytest.approx(99.5, abs=0.6)


def test_single_points_take_the_colour_of_their_label() -> None:
    detector = Keypoints(labels=("cat", "dog", "sun"), radius=20)
    points = [
        {"x": 100, "y": 100, "label": "cat"},
        {"x": 200, "y": 100, "label": "dog"},
        {"x": 300, "y": 100, "label": "moon"},
        {"x": 400, "y": 100},
        {"x": 100, "y": 300, "label": "cat", "color": [12, 34, 56]},
    ]
    hint = detector({"points": points, "size": [512, 512]})
    assert color(hint, 100, 100) == (255, 0, 0)
    assert color(hint, 200, 100) == (0, 255, 0)
    assert color(hint, 300, 100) == detector.color_of("moon") == Keypoints().color_of("moon")
    assert color(hint, 400, 100) == (255, 255, 255)
    assert color(hint, 100, 300) == (12, 34, 56)
    assert color(hint, 100, 118) == (255, 0, 0)
    assert color(hint, 100, 122) == (0, 0, 0)
    assert Keypoints().color_of("cat") != Keypoints().color_of("dog")


def test_boxes_and_masks_of_scenes_are_points_in_their_middle() -> None:
    data = Scenes(20, size=96)
    detector = Keypoints(labels=tuple(data.labels("boxes")), radius=8)
    for index in range(6):
        inputs = data[index].inputs
        hint = detector({"boxes": inputs["boxes"], "size": [96, 96]})
        # The last drawn is seen whole.
        last = inputs["boxes"][-1]
        left, top, width, height = (96 * value for value in last["box"])
        assert color(hint, left + width / 2, top + height / 2) == detector.color_of(last["label"])
        dots = detector(inputs["whole"])
        assert torch.equal((dots > -1).any(0), (hint > -1).any(0))
    assert detector(torch.zeros(2, 9, 9, dtype=torch.bool)).max() == -1


def test_the_middle_of_a_picture_is_that_of_what_it_shows() -> None:
    given = torch.ones(3, 64, 64)
    given[:, 10:30, 40:50] = -1
    hint = Keypoints(radius=8)(given)
    assert color(hint, 45, 20) == (255, 255, 255)
    assert 1 <= int((hint[0] > 0).sum()) <= 5


@pytest.mark.parametrize(
    "told, match",
    [
        ({}, "tells no key points"),
        ("[1, 2]", "no such file"),
        ({"people": 3}, "people: is no list"),
        ({"people": [[1, 2]]}, "people: is no list"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}]}, "2 numbers are not x, y and confidence"),
        ({"people": [{"pose_keypoints_2d": [1, 2, 3] * 5}]}, "5 points are no body"),
        ({"people": [{"pose_keypoints_2d": ["a"] * 54}]}, "no list of numbers"),
        ({"people": [{"pose_keypoints_2d": [float("nan")] * 54}]}, "no list of numbers"),
        ({"people": [{"hand_left_keypoints_2d": [1, 1, 1]}]}, "a hand has 21"),
        ({"annotations": [{"keypoints": [0] * 9}]}, "3 points are no body"),
        ({"annotations": [{"image_id": 1}, {"image_id": 2}]}, "of 2 pictures"),
        ({"points": [[1]]}, "1 numbers, 2 are wanted"),
        ({"points": [{"x": 1, "y": 2, "label": 3}]}, "3 is no label"),
        ({"points": [{"x": 1, "y": 2, "color": [1, 2, 300]}]}, "no colour"),
        ({"boxes": [{"label": "cat"}]}, "boxes.0: is no list"),
        ({"points": [], "size": [0, 4]}, "no size"),
        ({"points": [], "size": [4, 1e9]}, "no size"),
        ({"points": [], "size": "big"}, "size: is no list"),
    ],
)
def test_what_is_no_key_points_is_refused(told: Any, match: str) -> None:
    with pytest.raises((InvalidInput, NotFound), match=match):
        Keypoints()(told)


@pytest.mark.parametrize(
    "wrong", [{"labels": ("a", "a")}, {"radius": 0}, {"confidence": 2}, {"size": (0, 3)}], ids=str
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match="keypoints"):
        Keypoints(**wrong)
