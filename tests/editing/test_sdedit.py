"""SDEdit: the guide where it may not change, its law and its bound where it may, and continued pictures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.edit import Canvas, Start
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.editing.extend import extend
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.inpaint import Inpaint
from sfumato.editing.outpaint import Outpaint
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build
from sfumato.times.uniform import Uniform

SAID: dict[str, Any] = {"concept": "cat", "style": "noto", "steps": 6, "guidance": []}


def picture(height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return 2 * Noise([seed]).uniform((1, 3, height, width), "picture").float()[0] - 1


def edited(
    data: GaussianMixture,
    guide: Tensor,
    strength: float,
    repeats: int = 1,
    process: str = "ve",
    sampler: Any = "ancestral",
    steps: int = 200,
) -> Tensor:
    """SDEdit of rows (B, D) by an exact denoiser, one seed a row."""
    path, noise = build("process", process), Noise(torch.arange(len(guide)))
    canvas = Canvas(torch.zeros(1, 3, 8, 8), None, strength)
    x, times = canvas.begin(guide, path, Uniform()(path, steps), noise)
    walker = build("sampler", sampler)
    reverse = ReverseProcess(data, path, source=noise)
    start = Start(reverse, x, times, walker, Condition(), lambda null: data)
    begin = ImageToImage(strength=strength, repeats=repeats).turn(None).begin  # type: ignore[arg-type]
    start = start if begin is None else begin(start)
    return sample(walker, start.reverse, start.x, start.times)


# ---- the law ----


@pytest.mark.parametrize(("process", "strength"), [("flow", 0.3), ("ve", 0.5), ("vp", 0.3)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_of_gaussian_data_edits_have_the_law_of_their_chain(
    process: str, strength: float, repeats: int
) -> None:
    """A repeat is a draw of p(x0 | x_t) of its guide under noise: with r = a²s² / (a²s² + sigma²) the mean
    goes to m + r (guide - m), and the variance v to r² (v + sigma²/a²) + (1 - r) s².
    """
    mean, std, steps = 0.7, 0.5, 100
    data, guide = GaussianMixture.gaussian(mean, std, 8), torch.full((700, 8), -1.0, dtype=torch.float64)
    sampler = {"name": "ancestral", "variance": "large"}
    made = edited(data, guide, strength, repeats, process, sampler, steps)
    path = build("process", process)
    alpha, sigma = path(float(Uniform()(path, steps)[steps - math.floor(steps * strength)]))
    r = (alpha * std) ** 2 / ((alpha * std) ** 2 + sigma**2)
    m, v = -1.0, 0.0
    for _ in range(repeats):
        m, v = mean + r * (m - mean), r**2 * (v + (sigma / alpha) ** 2) + (1 - r) * std**2
    assert float(made.mean()) == pytest.approx(m, abs=0.03)
    assert float(made.var()) == pytest.approx(v, rel=0.08)


def test_repeats_draw_numbers_of_their_own() -> None:
    """Data spread out far beyond the noise: repeats walk away from the guide as a random walk does."""
    data = GaussianMixture.gaussian(0.0, 1e4, 64)
    guide = torch.zeros(200, 64, dtype=torch.float64)
    spread = [edited(data, guide, 0.4, repeats, "ve", steps=40).var() for repeats in (1, 2, 4)]
    assert float(spread[1] / spread[0]) == pytest.approx(2, rel=0.08)
    assert float(spread[2] / spread[0]) == pytest.approx(4, rel=0.08)


@pytest.mark.parametrize("process", ["flow", "ve", "vp"])
def test_no_noise_gives_back_the_guide(process: str) -> None:
    """K = 1 and t0 → 0: the distance shrinks with the noise."""
    data = GaussianMixture.gaussian(0.7, 0.5, 4)
    guide = torch.full((50, 4), -1.0, dtype=torch.float64)
    off = [float((edited(data, guide, s, 1, process) - guide).norm(dim=1).mean()) for s in (0.5, 0.1, 0.005)]
    assert off[0] > off[1] > off[2]
    # Twice the noise's variance in four dimensions: 2.66 of its standard deviation, for data that vary more.
    path = build("process", process)
    assert off[2] < 3.5 * path(float(Uniform()(path, 200)[199])).ratio


# ---- the bound ----


class Bounded:
    """A denoiser whose greatest squared norm of the score is noted."""

    def __init__(self, data: GaussianMixture) -> None:
        self.data, self.most = data, 0.0

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        said = self.data(x, level)
        score = (level.alpha * said.x0 - x) / level.sigma**2
        self.most = max(self.most, float(score.square().sum(1).max()))
        return said


def within(data: GaussianMixture, delta: float, corrected: bool) -> float:
    """How many of 200 edits of a guide far off lie within the bound of proposition 2."""
    dim = data.means.shape[1]
    path, steps, strength = build("process", "ve"), 80, 0.35
    bounded = Bounded(data)
    guide = torch.full((200, dim), 0.3, dtype=torch.float64)
    made = edited(bounded, guide, strength, sampler="euler_maruyama", steps=steps)  # type: ignore[arg-type]
    sigma = path(float(Uniform()(path, steps)[steps - math.floor(steps * strength)])).sigma
    tail = dim + 2 * math.sqrt(-dim * math.log(delta)) - 2 * math.log(delta)
    bound = sigma**2 * (bounded.most * sigma**2 + tail)
    if corrected:
        bound = (sigma**2 * math.sqrt(bounded.most) + sigma * math.sqrt(2 * tail)) ** 2
    return float(((made - guide).square().sum(1) <= bound).double().mean())


@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_edits_lie_within_the_bound_of_proposition_2(delta: float) -> None:
    """|guide - edit|² <= sigma² (C sigma² + d + 2 sqrt(-d ln δ) - 2 ln δ) with probability 1 - δ, C the
    greatest |score|², of data that vary less than the noise, as pictures do (Meng et al., proposition 2).
    """
    assert within(GaussianMixture.gaussian(0.0, 0.01, 64), delta, False) >= 1 - delta


def test_the_bound_as_it_is_printed_forgets_the_noise_put_on() -> None:
    """Of data that vary much more than the noise the score is next to nothing, and a guide ends sigma z +
    sigma z' away from itself, whose variance is twice what the proof counts. With both noises, and the drift
    added to them by the triangle inequality, the bound holds everywhere.
    """
    wide = GaussianMixture.gaussian(0.0, 100.0, 64)
    assert within(wide, 0.1, False) < 0.1
    for std in (100.0, 0.3, 0.01):
        assert within(GaussianMixture.gaussian(0.0, std, 64), 0.1, True) >= 0.9


# ---- of pictures ----


@pytest.mark.parametrize("strength", [0.34, 1.0])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_network_is_asked_for_the_steps_that_are_walked(
    tiny: Model, strength: float, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⌊N s⌋ times a repeat."""
    asked = []
    inner = tiny.denoiser.forward
    monkeypatch.setattr(tiny.denoiser, "forward", lambda *given: (asked.append(given[0]), inner(*given))[1])
    edit = ImageToImage(picture(), strength, repeats=repeats)
    generate(tiny, seed=1, sampler="ddim", edit=edit, **SAID)
    real = [x for x in asked if not x.is_meta]  # memory is measured without numbers
    assert len(real) == math.floor(6 * strength + 1e-9) * repeats


@pytest.mark.parametrize("repeats", [1, 2])
def test_all_kept_is_the_guide_to_the_last_bit(tiny: Model, repeats: int) -> None:
    given = picture(19, 22)
    edit = ImageToImage(given, 0.7, torch.ones(1, 19, 22), repeats)
    assert torch.equal(generate(tiny, seed=1, edit=edit, **SAID).tensor[0], given)


@pytest.mark.parametrize("sampler", ["ancestral", "dpm_solver_pp"])
def test_what_is_kept_stays_and_the_rest_goes_on_changing(tiny: Model, sampler: str) -> None:
    given, keep = picture(), -torch.ones(1, 16, 16)
    keep[:, :, :6] = 1
    made = [
        generate(tiny, seed=1, sampler=sampler, edit=ImageToImage(given, 0.5, keep, k), **SAID).tensor[0]
        for k in (1, 2, 3)
    ]
    for each in made:
        assert torch.equal(each[:, :, :6], given[:, :, :6])
    assert float((made[0] - made[1])[:, :, 6:].abs().mean()) > 0.01
    assert float((made[1] - made[2])[:, :, 6:].abs().mean()) > 0.01


def test_keeping_is_inpainting_the_rest(tiny: Model) -> None:
    given, keep = picture(), -torch.ones(1, 16, 16)
    keep[:, 3:9] = 1
    ours = generate(tiny, seed=1, edit=ImageToImage(given, 0.5, keep), **SAID).tensor
    theirs = generate(tiny, seed=1, edit=Inpaint(given, -keep, 0.5), **SAID).tensor
    assert torch.equal(ours, theirs)


def test_repeated_edits_of_a_batch_are_those_alone(tiny: Model) -> None:
    given = [picture(seed=row) for row in range(3)]
    together = generate(
        tiny, seeds=[5, 6, 7], batch=2, sampler="ancestral", edit=ImageToImage(given, 0.5, repeats=2), **SAID
    )
    for row in range(3):
        edit = ImageToImage(given[row], 0.5, repeats=2)
        alone = generate(tiny, seed=5 + row, sampler="ancestral", edit=edit, **SAID)
        torch.testing.assert_close(together.tensor[row], alone.tensor[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"repeats": 101}, {"strength": 0.0}], ids=str)
def test_edits_that_are_none(tiny: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"repeats|strength"):
        generate(tiny, edit=ImageToImage(picture(), **wrong), **SAID)


# ---- beyond the frame ----


def test_the_rim_is_made_anew_where_it_meets_what_is_new() -> None:
    change = Outpaint(picture(20, 30), left=4, top=2, overlap=3).canvas(3, None).change
    assert change is not None
    kept = change[0, 0] == 0
    assert kept.shape == (22, 34)
    assert bool(kept[5:, 7:].all())
    assert int(kept.sum()) == 17 * 27
    with pytest.raises(InvalidInput, match="nothing of the picture is left"):
        Outpaint(picture(4, 4), left=1, right=1, overlap=2).canvas(3, None)
    with pytest.raises(InvalidInput, match=r"outpaint\.overlap"):
        Outpaint(picture(4, 4), left=1, overlap=-1)


def test_a_picture_is_continued_tile_by_tile(tiny: Model) -> None:
    """What is given stays; every tile is of the size the model was made for, and sees what is beside it."""
    given = picture(16, 20)
    made = extend(tiny, given, left=30, bottom=9, seed=3, **SAID)
    whole = made.tensor[0]
    assert whole.shape == (3, 25, 50)
    assert torch.equal(whole[:, :16, 30:], given)
    assert float(whole[:, :, :30].std()) > 0.05
    assert made.seeds == (3,)
    assert "extend" in made.recipe["unrecorded"]
    another = extend(tiny, given, left=30, bottom=9, seed=4, **SAID).tensor[0]
    assert float((whole - another)[:, :, :30].abs().mean()) > 0.01
    rows = extend(tiny, [given, picture(16, 20, 5)], left=30, bottom=9, seed=3, **SAID).tensor
    torch.testing.assert_close(rows[0], whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "margins"),
        ({"left": 3, "tile": 9}, "no multiple of 8"),
        ({"left": 3, "size": 16}, "leave them out"),
    ],
    ids=str,
)
def test_continuations_that_are_none(tiny: Model, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        extend(tiny, picture(), **settings, **SAID)
