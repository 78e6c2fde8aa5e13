"""Edits: exact where nothing may change, and the published start and blend where it may."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.edit import Canvas, feathered
from sfumato.core.errors import InvalidInput
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.region import Region
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.inpaint import Inpaint
from sfumato.editing.outpaint import Outpaint
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.interfaces.recipe import save_png
from sfumato.interfaces.replay import replay
from sfumato.model import Model
from sfumato.processes.vp import VP
from sfumato.registry import build
from sfumato.times.uniform import Uniform

SAID: dict[str, Any] = {"concept": "cat", "style": "noto", "steps": 6, "guidance": []}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Random 8-bit colours."""
    levels = Noise([seed]).uniform((1, 3, height, width), "picture")[0]
    return to_image(2 * levels - 1)


def hole(height: int, width: int) -> Image.Image:
    """White in a box off the middle."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (3, 5, 12, 9))
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An odd-sized picture and a mask of it."""
    picture(19, 22).save(tmp_path / "a.png")
    hole(19, 22).save(tmp_path / "m.png")
    return tmp_path


# ---- where a walk starts ----


@pytest.mark.parametrize("process", ["edm", "flow", "ve", "vp"])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.61, 1.0])
def test_a_walk_starts_at_the_picture_under_the_noise_of_its_time(process: str, strength: float) -> None:
    path, noise = build("process", process), Noise([3, 4])
    times = Uniform()(path, 20)
    known = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 2, 2)
    x, left = Canvas(known, None, strength).begin(known, path, times, noise)
    walked = math.floor(strength * 20 + 1e-9)
    assert torch.equal(left, times[20 - walked :])
    level = path(float(left[0]))
    eps = (x - level.alpha * known) / level.sigma
    torch.testing.assert_close(eps, noise.randn((2, 3, 2, 2), "prior").double(), rtol=0, atol=1e-9)


def test_of_a_whole_walk_the_noise_is_that_of_no_edit() -> None:
    """At strength 1 only alpha, next to nothing, tells of the picture."""
    path, noise = VP(), Noise([3])
    known = torch.ones(1, 3, 4, 4)
    x, _ = Canvas(known).begin(known, path, Uniform()(path, 8), noise)
    torch.testing.assert_close(x, path.prior((1, 3, 4, 4), noise), rtol=0, atol=0.01)


def test_a_part_made_anew_forgets_what_was_there() -> None:
    path, noise = build("process", {"name": "betas", "schedule": "scaled_linear"}), Noise([3])
    times, change = Uniform()(path, 8), torch.ones(1, 1, 4, 4)
    first, other = (Canvas(torch.zeros(1, 3, 4, 4), change).begin(k, path, times, noise)[0] for k in _KNOWN)
    assert torch.equal(first, other)
    assert torch.equal(first, path.prior((1, 3, 4, 4), noise, float(times[0])))
    part = [Canvas(torch.zeros(1, 3, 4, 4), change, 0.5).begin(k, path, times, noise)[0] for k in _KNOWN]
    assert not torch.equal(*part)


_KNOWN = (torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, math.nan])
def test_strengths_that_are_none(strength: float) -> None:
    with pytest.raises(InvalidInput, match="strength"):
        Canvas(torch.zeros(1, 3, 8, 8), None, strength)


def test_less_than_a_step_is_refused(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match=r"0\.1 of 6 steps is not one"):
        generate(tiny, **SAID, edit=ImageToImage(picture(16, 16), 0.1))


def test_gaussian_data_are_edited_to_the_closed_form() -> None:
    """Of N(m, s²) data a picture a (alpha 1) ends at m + (a + sigma z - m) s / sqrt(s² + sigma²): partly
    itself, partly what the model would rather see.
    """
    path, data = build("process", "edm"), GaussianMixture.gaussian(0.7, 0.5, 3)
    noise, known = Noise(torch.arange(64)), torch.full((64, 3), -2.0, dtype=torch.float64)
    times = build("times", "karras")(path, 400)
    x, left = Canvas(known[:, :, None, None], None, 0.5).begin(known, path, times, noise)
    sigma = path(float(left[0])).sigma
    end = sample(build("sampler", "heun"), ReverseProcess(data, path, source=noise), x, left)
    expected = 0.7 + (x - 0.7) * 0.5 / math.sqrt(0.25 + sigma**2)
    torch.testing.assert_close(end, expected, rtol=0, atol=2e-4)


# ---- what may not change ----


def as_published(
    x: Tensor, known: Tensor, free: Tensor, times: Tensor, path: VP, data: GaussianMixture
) -> Tensor:
    """Replacement as diffusers inpaints with plain models: after each step what is known, noised."""
    level = path(float(times[0]))
    eps = (x - level.alpha * known) / level.sigma
    reverse = ReverseProcess(data, path)
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x, _ = build("sampler", "ddim").step(reverse, x, t, s, None)
        there = path(s)
        x = torch.where(free, x, there.alpha * known + there.sigma * eps)
    return x


def test_the_blend_is_replacement_when_walked_without_noise() -> None:
    path = VP()
    data = GaussianMixture(
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    )
    known = torch.tensor([[0.3, -0.4, 1.0, 0.1]], dtype=torch.float64).view(1, 1, 2, 2)
    free = torch.tensor([True, False, True, False]).view(1, 1, 2, 2)

    def flat(x: Tensor, level: Any, condition: Condition) -> Any:
        told = data(x.flatten(1), level, condition)
        return type(told)(told.x0.view_as(x), None)

    canvas = Canvas(known, free.double(), 0.8)
    x, times = canvas.begin(known, path, Uniform()(path, 12), Noise([5]))
    reverse = ReverseProcess(canvas.blend(flat, known), path)  # type: ignore[arg-type]
    ours = sample(build("sampler", "ddim"), reverse, x, times)
    theirs = as_published(x, known, free, times, path, flat)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert torch.equal(ours[~free.expand_as(ours)], known[~free.expand_as(known)])


@pytest.mark.parametrize("sampler", ["ancestral", "dpm_solver_pp", "heun"])
@pytest.mark.parametrize("feather", [0, 3])
def test_pixels_outside_the_mask_are_the_same_bytes(
    tiny: Model, folder: Path, sampler: str, feather: int
) -> None:
    """In the PNG itself, of a picture whose sides divide by nothing."""
    edit = Inpaint(str(folder / "a.png"), str(folder / "m.png"), feather=feather)
    made = generate(tiny, **SAID, seed=1, sampler=sampler, edit=edit)
    path = save_png(made.images[0], made.recipe, folder / "out")
    with Image.open(path) as new, Image.open(folder / "a.png") as old, Image.open(folder / "m.png") as mask:
        assert new.size == old.size == (22, 19)
        inside = 0
        for x in range(22):
            for y in range(19):
                if mask.getpixel((x, y)):
                    inside += new.getpixel((x, y)) != old.getpixel((x, y))
                else:
                    assert new.getpixel((x, y)) == old.getpixel((x, y))
    assert inside > 20


def test_a_region_is_a_mask_with_its_edge_and_is_replayed(tiny: Model, folder: Path) -> None:
    box = Region(box=(4, 3, 15, 12), feather=2)
    drawn = Image.new("L", (22, 19))
    drawn.paste(255, box.box)
    masked = Inpaint(str(folder / "a.png"), drawn, feather=2)
    edit = Inpaint(str(folder / "a.png"), region=box)
    one, other = (generate(tiny, **SAID, seed=1, edit=each) for each in (masked, edit))
    assert torch.equal(one.tensor, other.tensor)
    assert "unrecorded" not in other.recipe
    again = generate(tiny, **SAID, seed=1, edit=other.recipe["edit"])
    assert torch.equal(again.tensor, other.tensor)
    with pytest.raises(InvalidInput, match="or a region"):
        Inpaint(str(folder / "a.png"), drawn, region=box)


def test_a_picture_continued_keeps_what_it_was(tiny: Model, folder: Path) -> None:
    made = generate(tiny, **SAID, seed=1, edit=Outpaint(str(folder / "a.png"), left=5, bottom=4))
    with Image.open(folder / "a.png") as old:
        assert made.images[0].size == (27, 23)
        assert made.images[0].crop((5, 0, 27, 19)).tobytes() == old.tobytes()
    margin = made.tensor[0, :, :, :5]
    assert margin.std(dim=2).mean() > 0.05  # not the last pixels continued


def test_feathers_rise_evenly_inside_the_mask() -> None:
    mask = torch.zeros(1, 1, 5, 12)
    mask[..., 3:] = 1
    row = feathered(mask, 3)[0, 0, 2]
    expected = torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(row, expected)
    assert torch.equal(feathered(mask, 0), mask)


# ---- in generate ----


def test_a_little_strength_keeps_the_picture_and_much_does_not(tiny: Model) -> None:
    given = picture(16, 16)
    plain = ImageToImage(given).canvas(3, None).image
    off = [
        float(
            (generate(tiny, **SAID, seed=2, edit=ImageToImage(given, strength)).tensor - plain).abs().mean()
        )
        for strength in (0.2, 0.5, 1.0)
    ]
    assert off[0] < off[1] < off[2]


def test_each_picture_made_may_have_its_own_and_a_batch_changes_nothing(tiny: Model) -> None:
    given = [picture(16, 16, seed) for seed in range(3)]
    together = generate(tiny, **SAID, seeds=[5, 6, 7], batch=2, edit=ImageToImage(given))
    for row in range(3):
        alone = generate(tiny, **SAID, seed=5 + row, edit=ImageToImage(given[row]))
        torch.testing.assert_close(together.tensor[row], alone.tensor[0], rtol=0, atol=1e-5)
    with pytest.raises(InvalidInput, match="3 pictures for 2"):
        generate(tiny, **SAID, count=2, edit=ImageToImage(given))


def test_edits_are_replayed_from_their_recipe(tiny: Model, folder: Path) -> None:
    from sfumato.checkpoints import native
    from sfumato.checkpoints.load import load

    native.save(tiny, folder / "model")
    model = load(folder / "model")
    edits = [
        {"name": "inpaint", "image": str(folder / "a.png"), "mask": str(folder / "m.png"), "feather": 1},
        {"name": "outpaint", "image": str(folder / "a.png"), "top": 3},
        {"name": "image_to_image", "image": [str(folder / "a.png")], "strength": 0.5},
    ]
    for size in (None, (24, 16)):
        for edit in edits:
            if size is not None and edit["name"] == "inpaint":
                continue
            made = generate(model, **SAID, seed=4, size=size, edit=edit)
            path = save_png(made.images[0], made.recipe, folder / "out")
            assert replay(path).identical, (edit, size)
    picture(19, 22, seed=9).save(folder / "a.png")
    with pytest.raises(InvalidInput, match="another picture now"):
        replay(path)
    lost = generate(model, **SAID, seed=4, edit=ImageToImage(picture(8, 8)))
    assert lost.recipe["unrecorded"] == ["edit.image"]


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        ({"name": "inpaint"}, "image: none was given"),
        ({"name": "inpaint", "image": "nowhere.png", "mask": "m.png"}, "nowhere.png"),
        ({"name": "in_paint"}, "did you mean inpaint"),
        (3, "edit: 3 is none"),
        (Inpaint, "is none"),
        (Inpaint(picture(8, 8), hole(8, 9)), "a mask of 9 x 8 for a picture of 8 x 8"),
        (Inpaint(picture(8, 8), Image.new("L", (8, 8))), "nothing in it is white"),
        (ImageToImage([]), "pictures of one size"),
        (ImageToImage(torch.full((3, 8, 8), 2.0)), "not all from -1 to 1"),
        (ImageToImage([picture(8, 8), picture(8, 9)]), "pictures of one size"),
    ],
    ids=range(10),
)
def test_what_cannot_be_edited_is_told_before_any_work(tiny: Model, edit: Any, match: str) -> None:
    with pytest.raises(Exception, match=match) as caught:
        generate(tiny, **SAID, edit=edit)
    assert type(caught.value).__module__ == "sfumato.core.errors"


@pytest.mark.parametrize("wrong", [{"left": -1}, {}, {"left": 9000}, {"left": 1, "feather": -1}], ids=str)
def test_margins_that_are_none(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="outpaint"):
        Outpaint("a.png", **wrong)
