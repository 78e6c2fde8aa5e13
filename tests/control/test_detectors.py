"""Detectors that need no network: each against a closed form, and what all of them have in common."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sfumato.control.detectors.alpha import Alpha
from sfumato.control.detectors.canny import Canny
from sfumato.control.detectors.hough import Hough
from sfumato.control.detectors.luminance import Luminance
from sfumato.control.detectors.normals import Normals
from sfumato.control.detectors.palette import Palette
from sfumato.control.detectors.segmentation import Segmentation
from sfumato.core.errors import InvalidInput, MissingExtra, NotFound
from sfumato.data.emoji import Emoji
from sfumato.data.picture import to_bytes, to_image
from sfumato.registry import build, describe

PLAIN = ["alpha", "canny", "hough", "luminance", "palette", {"name": "scribble", "edges": "canny"}]


def picture(height: int, width: int, level: float = 1.0) -> Tensor:
    return torch.full((3, height, width), level)


def of_levels(rows: list[list[int]] | Tensor) -> Tensor:
    """Grey levels 0..255 as a picture of three equal colours."""
    return to_image(torch.as_tensor(rows)[None].expand(3, -1, -1).to(torch.uint8))


@pytest.fixture(scope="module")
def apple() -> Tensor:
    return Emoji(("noto",), size=64, concepts=("red apple",))[0].image


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_a_hint_is_a_picture_of_the_same_size_made_alike_every_time(settings: object, apple: Tensor) -> None:
    detector = build("detector", settings)
    before, wide = apple.clone(), torch.cat((apple, apple), dim=2)
    for given in (apple, wide):
        hint = detector(given)
        assert hint.dtype == torch.float32
        assert hint.shape[0] in (1, 3)
        assert hint.shape[1:] == given.shape[1:]
        assert hint.min() >= -1
        assert hint.max() <= 1
        assert hint.std() > 0.05  # it shows something
        assert torch.equal(hint, build("detector", describe(detector))(given))
    assert torch.equal(detector(apple, "a"), detector(apple, "a"))
    assert torch.equal(apple, before)


@pytest.mark.parametrize("settings", PLAIN[1:], ids=str)
def test_transparency_lies_over_white_and_a_file_says_the_same(
    settings: object, apple: Tensor, tmp_path: Path
) -> None:
    detector = build("detector", settings)
    drawn = Emoji(("noto",), size=64, concepts=("red apple",))
    drawn.picture(0).save(tmp_path / "apple.png")
    expected = detector(apple)
    assert (detector(drawn.transparent(0)) - expected).abs().mean() < 0.01
    assert torch.equal(detector(tmp_path / "apple.png"), detector(drawn.picture(0)))
    assert (detector(str(tmp_path / "apple.png")) - expected).abs().mean() < 0.01


@pytest.mark.parametrize("settings", PLAIN, ids=str)
def test_what_is_no_picture_is_refused(settings: object, tmp_path: Path) -> None:
    detector = build("detector", settings)
    (tmp_path / "a.png").write_bytes(b"no picture")
    wrong = (None, 3, torch.zeros(2, 8, 8), torch.full((3, 8, 8), 3.0), tmp_path / "a.png", torch.ones(3, 8))
    for given in wrong:
        with pytest.raises(InvalidInput):
            detector(given)


@pytest.mark.parametrize("settings", ["canny", "hough", "alpha"])
def test_without_opencv_the_extra_is_named(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"OpenCV.*sfumato\[control\]"):
        build("detector", settings)(picture(16, 16))


def test_canny_of_a_half_plane_is_one_line_at_its_border() -> None:
    given = picture(32, 40)
    given[:, :, :17] = -1
    edges = Canny()(given)
    columns = (edges[0] == 1).all(0).nonzero().flatten().tolist()
    assert columns in ([16], [17])
    assert float((edges == 1).sum()) == 32
    assert set(edges.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("step, seen", [(49, False), (51, True)])
def test_canny_counts_a_step_four_times(step: int, seen: bool) -> None:
    levels = torch.full((24, 24), 100)
    levels[:, 12:] += step
    assert bool((Canny(100, 200)(of_levels(levels)) == 1).any()) is seen


def test_a_weak_edge_counts_where_it_hangs_on_a_strong_one() -> None:
    levels = torch.full((24, 24), 100)
    levels[:10, 12:] += 80
    levels[10:, 12:] += 35
    assert bool((Canny(100, 200)(of_levels(levels))[0, 14:20] == 1).any())
    assert not bool((Canny(200, 200)(of_levels(levels))[0, 14:20] == 1).any())


def test_canny_sees_edges_between_colours_as_light_as_each_other() -> None:
    given = torch.zeros(3, 24, 24)
    given[0, :, :12], given[2, :, 12:] = 0.9, 0.9
    assert bool((Canny()(given) == 1).any())


def test_thresholds_of_seeds_are_spread_log_evenly_and_none_leaves_them() -> None:
    detector = Canny(100, 200, spread=2)
    assert detector.thresholds() == (100, 200)
    drawn = torch.tensor([detector.thresholds(str(seed)) for seed in range(2000)]).log2()
    assert (drawn[:, 0] <= drawn[:, 1]).all()
    assert drawn[:, 0].min() > math.log2(50) - 1e-4
    assert drawn[:, 1].max() < math.log2(400) + 1e-4
    # The sum of both is that of two even draws, whichever is the lower.
    total = drawn.sum(1) - math.log2(100 * 200)
    assert abs(total.mean()) < 0.06
    assert abs(total.var() - 2 / 3) < 0.06
    assert Canny(spread=1).thresholds("7") == (100, 200)


@pytest.mark.parametrize("wrong", [{"low": 300}, {"low": -1}, {"high": math.nan}, {"spread": 0.5}])
def test_canny_refuses(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match="canny"):
        Canny(**wrong)


def drawn(size: tuple[int, int], corners: list[tuple[float, float]]) -> Tensor:
    """A black polygon on white, its corners in pixels; eight times oversampled."""
    canvas = Image.new("L", (size[1] * 8, size[0] * 8), 255)
    ImageDraw.Draw(canvas).polygon([(8 * x + 3.5, 8 * y + 3.5) for x, y in corners], fill=0)
    return to_image(to_bytes(canvas.reduce(8))).expand(3, -1, -1)


@pytest.mark.parametrize("turn", [0, 17, 45, 80])
def test_hough_finds_a_line_with_its_ends_within_a_pixel(turn: int) -> None:
    """A line three pixels wide is two edges, and halfway between them itself."""
    middle, along, across = torch.tensor([64.0, 60.0]), torch.tensor([40.0, 0]), torch.tensor([0, 1.5])
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    rotation = torch.tensor([[cos, -sin], [sin, cos]])
    corners = [middle + rotation @ (s * along + t * across) for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    segments = Hough().segments(drawn((120, 128), [tuple(c.tolist()) for c in corners]))
    assert len(segments) == 2
    # In the line's own directions: along it and across.
    ends = (segments.view(2, 2, 2) - middle) @ rotation
    ends = torch.stack([each if each[0, 0] < 0 else each.flip(0) for each in ends])
    assert ((ends[..., 1].abs() - 1.5).abs() < 0.4).all()
    assert (ends.mean(0) - torch.stack((-along, along))).abs().max() < 1
    assert ends.mean(0)[:, 1].abs().max() < 0.1


def test_hough_draws_what_it_finds_and_leaves_out_the_short() -> None:
    given = drawn((100, 100), [(20, 20), (80, 20), (80, 32), (20, 32)])
    detector = Hough(shortest=0.3, width=10)
    assert len(Hough(shortest=0.05).segments(given)) == 4
    segments = detector.segments(given)
    assert len(segments) == 2
    hint = detector(given)[0]
    assert hint[20, 30:70].min() == 1
    assert hint[32, 30:70].min() == 1
    assert hint[24:29].max() == -1  # the short sides are not there
    assert (hint[:, 50] == 1).sum() == 2 * 2  # 10 at 512 are 2 at 100
    assert Hough()(picture(32, 32)).max() == -1
    assert Hough().segments(picture(32, 32)).shape == (0, 4)


def test_luminance_is_the_weighted_mean() -> None:
    colors = torch.eye(3)[:, :, None] * 2 - 1  # red, green and blue side by side
    expected = torch.tensor([0.299, 0.587, 0.114]) * 2 - 1
    torch.testing.assert_close(Luminance()(colors)[0, :, 0], expected)
    grey = torch.rand(1, 8, 8).expand(3, -1, -1) * 2 - 1
    torch.testing.assert_close(Luminance()(grey), grey[:1])
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray((noise * 255).round().to(torch.uint8).movedim(0, -1).numpy())
    theirs = to_image(to_bytes(image.convert("L")))
    assert (Luminance()(image) - theirs).abs().max() < 1.01 / 127.5
    with pytest.raises(InvalidInput, match="sum to 1"):
        Luminance((0.3, 0.3, 0.3))


def test_palette_of_constant_blocks_is_the_picture_itself() -> None:
    blocks = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = blocks.repeat_interleave(5, 1).repeat_interleave(5, 2)
    torch.testing.assert_close(Palette()(given), given, rtol=0, atol=1e-6)


def test_palette_is_the_mean_of_each_cell() -> None:
    given = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = Palette(2)(given)
    assert found.shape == given.shape
    for row in range(2):
        for column in range(3):
            cell = (slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            expected = given[cell].mean((1, 2))
            torch.testing.assert_close(found[cell], expected[:, None, None].expand(-1, 8, 8))
    with pytest.raises(InvalidInput, match="24 x 16 pixels make no 20 cells"):
        Palette(20)(given)


def test_alpha_is_the_transparency_where_there_is_some() -> None:
    given = torch.rand(4, 9, 7) * 2 - 1
    assert torch.equal(Alpha()(given), given[3:])
    masks = torch.rand(3, 9, 7) > 0.7
    assert torch.equal(Alpha()(masks)[0] > 0, masks[0] | masks[1] | masks[2])


def test_alpha_of_an_opaque_picture_pours_the_ground_out_from_the_edge() -> None:
    """A ring on noisy ground, cut by the frame: what it encloses is its own, of the ground's colour too."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    away = ((rows - 20.0) ** 2 + (columns - 36.0) ** 2).sqrt()
    noise = torch.randint(0, 9, (3, 60, 60), generator=torch.Generator().manual_seed(0))
    ground = 200 + noise
    given = to_image(torch.where((away < 22) & (away > 8), torch.tensor(40), ground).to(torch.uint8))
    assert torch.equal(Alpha(tolerance=0.04)(given)[0] > 0, away < 22)
    # So is a file whose transparency says nothing; a tensor's says that all is object.
    opaque = torch.cat((given, torch.ones(1, 60, 60)))
    file = Image.fromarray(((opaque.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy(), "RGBA")
    assert torch.equal(Alpha()(file), Alpha()(given))
    assert torch.equal(Alpha()(opaque), opaque[3:])
    with pytest.raises(InvalidInput, match="no plain ground"):
        Alpha()(torch.rand(3, 32, 32))


def test_alpha_of_emoji_on_white_is_nearly_their_own() -> None:
    data = Emoji(("noto",), size=64, categories=("Food & Drink",))
    overlaps = []
    for index in range(0, len(data), 7):
        found, own = Alpha()(data[index].image) > 0, data.transparent(index)[3:] > -0.5
        overlaps.append(float((found & own).sum() / (found | own).sum()))
    assert sorted(overlaps)[len(overlaps) // 2] > 0.95


@pytest.mark.parametrize("slopes", [(0.7, 0.0), (0.0, -1.3), (0.5, 0.8), (-2.0, 0.1)])
@pytest.mark.parametrize("size", [(40, 40), (24, 60)])
def test_normals_of_a_tilted_plane_are_its_normal(slopes: tuple[float, float], size: tuple[int, int]) -> None:
    side = min(size)
    v, u = torch.meshgrid(torch.arange(size[0]) / side, torch.arange(size[1]) / side, indexing="ij")
    depth = slopes[0] * u + slopes[1] * v
    spread = float(depth.max() - depth.min())
    normal = torch.tensor([3 * slopes[0] / spread, 3 * slopes[1] / spread, 1.0])
    found = Normals(relief=3, background=0)(depth)
    expected = (normal / normal.norm())[:, None, None].expand_as(found)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    # Of any unit.
    torch.testing.assert_close(Normals(relief=3, background=0)(400 * depth[None] - 70), found)


def test_normals_of_a_ball_are_its_radii_and_colours_say_left_and_up() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 201), torch.linspace(-1, 1, 201), indexing="ij")
    inside = x**2 + y**2 < 0.8
    height = (1 - x**2 - y**2).clamp(min=0.1).sqrt()
    # u and v are of two units across; the range is that of the heights.
    relief = float(height.max() - height.min()) / 2
    found = Normals(relief=relief * 201 / 200, background=0)(height)
    expected = torch.stack((-x, -y, height))
    assert (found - expected)[:, F.max_pool2d((~inside).float()[None], 5, 1, 2)[0] == 0].abs().max() < 1e-2
    assert found[0, 100, 20] > 0.5  # red on the left
    assert found[1, 20, 100] > 0.5  # green above


def test_normals_of_the_far_ground_face_the_viewer() -> None:
    depth = torch.linspace(0, 1, 51)[None].expand(20, -1)
    found = Normals(background=0.3)(depth)
    front = torch.tensor([0, 0, 1.0])
    torch.testing.assert_close(found[:, 5, 10], front)
    assert found[0, 5, 20] > 0.5
    torch.testing.assert_close(Normals()(torch.ones(4, 4))[:, 2, 2], front)


def test_sixteen_bits_of_depth_are_kept(tmp_path: Path) -> None:
    depth = torch.arange(64 * 64).view(64, 64)
    flat = depth.to(torch.int32).numpy()
    Image.fromarray(flat.astype("uint16")).save(tmp_path / "depth.png")
    torch.testing.assert_close(Normals()(tmp_path / "depth.png"), Normals()(depth))
    for wrong in (torch.zeros(3, 4, 4), torch.ones(1, 9), torch.full((4, 4), math.nan), None):
        with pytest.raises(InvalidInput):
            Normals()(wrong)


@pytest.mark.parametrize("name, count, shared", [("voc", 256, {255: 0}), ("ade20k", 150, {48: 6})])
def test_segmentation_comes_back_exactly(name: str, count: int, shared: dict[int, int]) -> None:
    numbers = torch.arange(count).repeat(3)[torch.randperm(3 * count)].view(3, -1)
    detector = Segmentation(name)
    expected = numbers.clone()
    for one, other in shared.items():
        expected[numbers == one] = other
    assert torch.equal(detector.numbers(detector(numbers)), expected)


def test_legends_are_the_published_ones() -> None:
    def color(name: str, number: int) -> list[int]:
        drawn = Segmentation(name)(torch.tensor([[number]]))
        return ((drawn[:, 0, 0] + 1) * 127.5).round().int().tolist()

    assert [color("voc", n) for n in (0, 1, 2, 3, 8, 15, 20)] == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [192, 128, 128], [0, 64, 128])
    ]
    # wall, sky, tree, person, sea, flag
    assert [color("ade20k", n) for n in (0, 2, 4, 12, 26, 149)] == [
        *([120, 120, 120], [6, 230, 230], [4, 200, 3], [150, 5, 61], [9, 7, 230], [92, 0, 255])
    ]


def test_segmentation_reads_masks_and_files_and_forgives_noise(tmp_path: Path) -> None:
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :4], masks[1, 2:5, 3:] = True, True
    numbers = torch.zeros(6, 6, dtype=torch.int64)
    numbers[:4] = 1
    numbers[2:5, 3:] = 2
    detector = Segmentation()
    assert torch.equal(detector(masks), detector(numbers))
    image = Image.fromarray(numbers.to(torch.uint8).numpy())
    image.save(tmp_path / "map.png")
    assert torch.equal(detector(tmp_path / "map.png"), detector(image))
    assert torch.equal(detector(image), detector(numbers))
    blurred = (detector(numbers) + 0.1 * (torch.rand(3, 6, 6) - 0.5)).clamp(-1, 1)
    assert torch.equal(detector.numbers(blurred), numbers)
    numbers[0, 0] = 255
    assert detector(numbers)[:, 0, 0].tolist() == [-1, -1, -1]


def test_segmentation_refuses() -> None:
    with pytest.raises(InvalidInput, match="class 150 of a legend of 150"):
        Segmentation("ade20k")(torch.tensor([[150]]))
    with pytest.raises(InvalidInput, match="no map"):
        Segmentation()(torch.zeros(3, 3))
    with pytest.raises(NotFound, match="no legend is called 'voc2'"):
        Segmentation("voc2")
