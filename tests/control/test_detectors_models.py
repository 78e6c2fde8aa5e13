"""Depth and pose by a model of the user's: what it is shown, what is made of its answer, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.control.detectors.depth import Depth
from sfumato.control.detectors.keypoints import Keypoints
from sfumato.control.detectors.normals import Normals
from sfumato.control.detectors.pose import Pose
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, MissingExtra, NotFound
from sfumato.registry import build


class Red(nn.Module):
    """Calls what is red near."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * 3 + 7


def ramp(height: int = 64, width: int = 96) -> Tensor:
    given = torch.zeros(3, height, width)
    given[0] = torch.linspace(-1, 1, width)
    return given


def test_depth_is_what_the_model_tells_spread_over_the_range() -> None:
    found = Depth(Red(), side=0, multiple=1)(ramp())
    torch.testing.assert_close(found, ramp()[:1], rtol=0, atol=1e-5)
    assert torch.equal(Depth(lambda x: 0 * x[:, :1], side=32)(ramp()), torch.zeros(1, 64, 96))


def test_distances_are_inverted() -> None:
    distance = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    found = Depth(lambda x: distance, distance=True, side=0, multiple=1)(torch.zeros(3, 8, 8))
    expected = 1 / distance
    expected = 2 * (expected - expected.min()) / (expected.max() - expected.min()) - 1
    torch.testing.assert_close(found, expected)


def test_the_model_is_shown_what_it_asks_for() -> None:
    shown: list[Tensor] = []

    def model(x: Tensor) -> dict[str, Tensor]:
        shown.append(x)
        return {"predicted_depth": F.avg_pool2d(x, 4)[:, :1]}

    given = torch.ones(4, 50, 70)
    given[:3], given[3] = -1, 1
    found = Depth(model, side=64, multiple=32, mean=(0.5, 0.25, 0), deviation=(0.5, 1, 2))(given)
    assert found.shape == (1, 50, 70)
    (x,) = shown
    assert x.shape == (1, 3, 64, 96)  # 64 x 89.6, the sides brought to 32s
    torch.testing.assert_close(x[0, :, 5, 5], torch.tensor([-1.0, -0.25, 0]))
    shown.clear()
    Depth(model)(torch.zeros(3, 512, 512))
    torch.testing.assert_close(
        shown[0][0, :, 0, 0],
        (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]),
    )
    assert shown[0].shape == (1, 3, 384, 384)


def test_files_of_programs_are_read(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Red()), str(tmp_path / "red.pt"))
    expected = Depth(Red(), side=64)(ramp())
    detector = build("detector", {"name": "depth", "model": str(tmp_path / "red.pt"), "side": 64})
    assert torch.equal(detector(ramp()), expected)
    sizes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(Red().eval(), (torch.zeros(1, 3, 64, 64),), dynamic_shapes=sizes)
    torch.export.save(program, str(tmp_path / "red.pt2"))
    assert torch.equal(Depth(str(tmp_path / "red.pt2"), side=64)(ramp()), expected)


@pytest.mark.parametrize("detector", [Depth, Pose])
def test_without_a_model_a_sentence_says_what_is_wanted(detector: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"needs a model.*TorchScript"):
        detector()(ramp())
    with pytest.raises(NotFound, match="no such file of a model"):
        detector(str(tmp_path / "none.pt"))(ramp())
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "rubbish.pt2").write_bytes(b"rubbish")
    for name in ("weights.pt", "rubbish.pt2"):
        with pytest.raises(CheckpointCorrupt, match="holds no program"):
            detector(str(tmp_path / name))(ramp())
    for told in (None, "depth", [], torch.zeros(3, 4, 5), torch.full((1, 4, 4), torch.nan)):
        with pytest.raises(InvalidInput, match="the model told"):
            detector(lambda x, told=told: told)(ramp())
    with pytest.raises(InvalidInput, match="is no model"):
        detector(3)(ramp())
    for wrong in ({"side": -1}, {"multiple": 0}, {"deviation": (1.0, 0.0, 1.0)}):
        with pytest.raises(InvalidInput):
            detector(**wrong)


def test_normals_may_ask_a_model_for_depth() -> None:
    depth = Depth(Red(), side=0, multiple=1)
    torch.testing.assert_close(Normals(depth=depth)(ramp()), Normals()(ramp()[:1]), rtol=0, atol=1e-4)
    settings = {"name": "normals", "depth": {"name": "depth", "side": 64}}
    with pytest.raises(MissingExtra):
        build("detector", settings)(ramp())


def test_a_pose_is_the_key_points_that_the_model_tells() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(2, 18, 2, generator=generator) * torch.tensor([88.0, 56.0]) + 4
    people = torch.cat((places, torch.ones(2, 18, 1)), dim=2)
    people[1, 4, 2] = 0
    rows = [{"keypoints": person.flatten().tolist()} for person in people]
    expected = Keypoints()({"annotations": rows, "size": [64, 96]})
    assert torch.equal(Pose(lambda x: people)(ramp()), expected)
    # Shown at twice the size, it tells twice the places.
    twice = people * torch.tensor([2.0, 2.0, 1.0])
    assert torch.equal(Pose(lambda x: (twice,), side=128)(ramp()), expected)
    assert torch.equal(Pose(lambda x: {"annotations": rows})(ramp()), expected)
    assert Pose(lambda x: torch.zeros(0, 17, 3))(ramp()).max() == -1
    assert Pose(lambda x: torch.zeros(0, 17, 3))(ramp()).shape == (3, 64, 96)
    loose = Pose(lambda x: people, drawing=Keypoints(confidence=0.5))
    people[0, :, 2] = 0.4
    assert torch.equal(loose(ramp()), Keypoints()({"annotations": rows[1:], "size": [64, 96]}))
