"""Inversion: walks undone, exactly or by O(1/N), and nulls under which pictures come out right."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from prompted_recipes import prompted
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import Flow as PredictFlow
from sfumato.core.region import Region
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.core.space import Space
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.invert import METHODS, Silent, climb, invert
from sfumato.editing.inverted import Inversion, Inverted
from sfumato.editing.local_blend import LocalBlend
from sfumato.editing.null_text import null_text, prompt_as_null
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build

DATA = GaussianMixture(
    torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
)
SAID: dict[str, Any] = {"concept": "cat", "style": "noto"}


def round_trip(process: str, steps: int, method: Any, sampler: str = "ddim", **settings: Any) -> Tensor:
    """How far each of 16 data is from itself, up and down again."""
    path = build("process", process)
    x0, times = DATA.sample(Noise(range(16))), build("times", "karras")(path, steps)
    reverse, walker = ReverseProcess(DATA, path, source=Silent(16)), build("sampler", sampler)
    trail, _ = climb(reverse, x0, times, method, walker, **settings)
    assert trail.shape == (steps + 1, 16, 4)
    assert torch.equal(trail[-1], x0)
    return (sample(walker, reverse, trail[0], times) - x0).norm(dim=1)


# ---- the way up ----


@pytest.mark.parametrize("process", ["betas", "edm", "flow", "ve", "vp"])
@pytest.mark.parametrize("method", ["ddim", "ddim_below"])
def test_the_round_trip_misses_by_one_over_the_steps(process: str, method: str) -> None:
    """Log-log slope about -1: twice the steps, half the error."""
    errors = [float(round_trip(process, steps, method).median()) for steps in (80, 160, 320)]
    slopes = [math.log2(b / a) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([-1.0, -1.0], abs=0.12), errors


@pytest.mark.parametrize("process", ["betas", "edm", "flow", "ve", "vp"])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun"])
def test_fixed_points_undo_each_step_to_the_tolerance(process: str, sampler: str) -> None:
    """Whatever the steps, of any sampler without memory; the flow makes the sum of misses larger, at its
    forks by much.
    """
    path, walker = build("process", process), build("sampler", sampler)
    x0 = DATA.sample(Noise(range(16)))
    reverse = ReverseProcess(DATA, path, source=Silent(16))
    for steps, tolerance in ((20 if sampler == "heun" else 10, 1e-9), (40, 1e-9), (40, 1e-4)):
        times = build("times", "karras")(path, steps)
        trail, missed = climb(reverse, x0, times, "exact", walker, tolerance)
        assert missed is not None
        assert float(missed.max()) <= tolerance
        for index, (t, s) in enumerate(pairwise(times.tolist())):
            down, _ = walker.step(reverse, trail[index], t, s, None)
            off = (down - trail[index + 1]).square().mean(1).sqrt() / path(s).norm
            torch.testing.assert_close(off, missed[index], rtol=1e-6, atol=1e-14)
        back = (sample(walker, reverse, trail[0], times) - x0).norm(dim=1)
        assert float(back.median()) < 30 * tolerance
        assert float(back.max()) < 1e5 * tolerance


def test_the_last_step_alone_is_lost_where_it_is_not_solved() -> None:
    path = VP()
    x0, times = DATA.sample(Noise(range(16))), build("times", "uniform")(path, 20)
    reverse = ReverseProcess(DATA, path)
    trail, missed = climb(reverse, x0, times, "fixed_point", tolerance=1e-9, iterations=100)
    assert missed is not None
    assert float(missed[:-1].max()) <= 1e-9
    down = sample(build("sampler", "ddim"), reverse, trail[0], times)
    own = (down - x0).square().mean(1).sqrt()
    torch.testing.assert_close(own, missed[-1], rtol=1e-4, atol=1e-7)
    assert float(own.min()) > 1e-4


def test_of_gaussian_data_the_way_up_is_the_flow_s_closed_form() -> None:
    """From x at a small level to m + (x - m) · ratio of standard deviations, on a fine grid."""
    path, data = build("process", "edm"), GaussianMixture.gaussian(0.7, 0.5, 3)
    times = build("times", {"name": "karras", "clean": False})(path, 800)
    low, high = path(float(times[-1])).sigma, path(float(times[0])).sigma
    x = torch.linspace(-1, 2, 15, dtype=torch.float64).view(5, 3)
    trail, _ = climb(ReverseProcess(data, path), x, times, "ddim_below")
    exact = 0.7 + (x - 0.7) * math.sqrt((0.25 + high**2) / (0.25 + low**2))
    torch.testing.assert_close(trail[0], exact, rtol=0.03, atol=0.05)


def test_a_step_up_is_that_of_the_released_code() -> None:
    """Mokady et al.'s next_step, written out with ᾱ: the noise asked at the target step, of the x at hand."""
    path = build("process", "betas")
    times = build("times", "leading")(path, 10)
    x = DATA.sample(Noise(range(4)))
    reverse = ReverseProcess(DATA, path)
    trail, _ = climb(reverse, x, times, "ddim")
    for t, s in list(pairwise(times.tolist()))[::-1]:
        here, there = path(t).alpha ** 2, path(s).alpha ** 2
        eps = reverse.noise(x, t)
        x0 = (x - (1 - there) ** 0.5 * eps) / there**0.5
        x = here**0.5 * x0 + (1 - here) ** 0.5 * eps
    torch.testing.assert_close(trail[0], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_paths_find_the_same_noise(method: Any) -> None:
    """Of VP and VE at equal sigma/alpha, up to scale."""
    found = []
    for path in (build("process", "edm"), build("process", {"name": "vp"})):
        ratios = [10.0, 4.0, 1.5, 0.5, 0.1, 0.02]
        times = torch.tensor([*(path.time(-math.log(r)) for r in ratios), 0.0], dtype=torch.float64)
        x0 = DATA.sample(Noise(range(8)))
        trail, _ = climb(ReverseProcess(DATA, path), x0, times, method, tolerance=1e-10)
        found.append(trail[0] / path(float(times[0])).norm)
    torch.testing.assert_close(*found, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_company(method: Any) -> None:
    path = VP()
    x0, times = DATA.sample(Noise(range(6))), build("times", "uniform")(path, 8)
    together, missed = climb(ReverseProcess(DATA, path), x0, times, method, tolerance=1e-6)
    for row in range(6):
        alone, own = climb(ReverseProcess(DATA, path), x0[row : row + 1], times, method, tolerance=1e-6)
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=0, atol=1e-8)
        if missed is not None and own is not None:
            torch.testing.assert_close(missed[:, row], own[:, 0], rtol=1e-3, atol=1e-12)


def test_every_step_up_is_told() -> None:
    times, events = build("times", "uniform")(VP(), 5), []
    climb(ReverseProcess(DATA, VP()), DATA.sample(Noise([1])), times, observe=events.append)
    assert [(event.s, event.t) for event in events] == list(pairwise(times.tolist()))[::-1]
    assert [event.index for event in events] == list(range(5))


# ---- a model's pictures ----


def pictures(count: int = 1, sides: tuple[int, int] = (16, 16)) -> list[Tensor]:
    return list(2 * Noise(range(count)).uniform((count, 3, *sides), "picture").float() - 1)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("method", ["fixed_point", "exact"])
@pytest.mark.parametrize("path", [None, "flow", "ve"])
def test_a_picture_is_made_again(tiny: Model, path: str | None, method: Any) -> None:
    """Of odd sides, by a network that knows nothing of pictures."""
    given = pictures(1, (19, 22))[0]
    settings: dict[str, Any] = {"steps": 10, "path": path, "times": "karras", **SAID}
    found = invert(tiny, given, method=method, **settings)
    assert found.residual is not None
    assert float(found.residual[:-1].max()) < 1e-5
    made = found.make()
    assert made.tensor.shape == (1, 3, 19, 22)
    assert far(made.tensor[0], given) < 1e-3 + float(found.residual[-1]) * 1.5
    plain = invert(tiny, given, **settings)
    assert far(made.tensor[0], given) <= far(plain.make().tensor[0], given) + 1e-3
    other = found.make(concept="lemon", guidance=3.0).tensor
    assert far(other[0], given) > 2 * far(made.tensor[0], given)


def test_generate_takes_it_with_any_sampler_and_path(tiny: Model) -> None:
    given = pictures()[0]
    found = invert(tiny, given, steps=30, method="exact", path="ve", times="karras", **SAID)
    for settings in (
        {"sampler": "heun", "steps": 25},
        {"sampler": "dpm_solver_pp", "steps": 60},
        {"sampler": "ddim", "steps": 200},
    ):
        made = generate(
            tiny, edit=Inverted(found), path="ve", times="karras", guidance=[], seed=1, **SAID, **settings
        )
        assert far(made.tensor[0], given) < 0.12, settings
        assert made.recipe["unrecorded"] == ["edit.found"]
    flow = generate(
        tiny, edit=Inverted(found), path="flow", times="karras", guidance=[], seed=1, steps=200, **SAID
    )
    assert far(flow.tensor[0], given) < 0.12
    pure = invert(tiny, given, steps=4, path="flow", times="uniform", **SAID)
    with pytest.raises(InvalidInput, match="path: this path has no level with as much noise"):
        generate(tiny, edit=Inverted(pure), path="ve", guidance=[], seed=1, steps=5, **SAID)


def test_pictures_of_a_batch_are_those_alone(tiny: Model) -> None:
    given = pictures(3)
    said = {"concept": ["cat", "lemon", None], "style": "noto"}
    settings: dict[str, Any] = {"steps": 6, "method": "fixed_point", "times": "uniform"}
    found = invert(tiny, given, batch=2, **settings, **said)
    assert found.trajectory.shape == (7, 3, 3, 16, 16)
    made = found.make(guidance=2.0, concept="red apple").tensor
    for row in range(3):
        alone = invert(tiny, given[row], **settings, concept=said["concept"][row], style="noto")
        torch.testing.assert_close(found.trajectory[:, row], alone.trajectory[:, 0], rtol=0, atol=2e-3)
        again = alone.make(guidance=2.0, concept="red apple").tensor[0]
        torch.testing.assert_close(made[row], again, rtol=0, atol=1e-2)
    joined = generate(tiny, edit=Inverted([found[:1], found[1:]]), seeds=[0, 0, 0], **found.settings, **said)
    torch.testing.assert_close(joined.tensor, found.make().tensor, rtol=0, atol=1e-6)


def test_one_picture_becomes_several(tiny: Model) -> None:
    found = invert(tiny, pictures()[0], steps=6, times="uniform", **SAID)
    made = found.make(count=2, concept=["cat", "lemon"], guidance=3.0).tensor
    own = found.make(concept="lemon", guidance=3.0).tensor
    torch.testing.assert_close(made[1], own[0], rtol=0, atol=1e-5)
    assert far(made[0], made[1]) > 1e-3


def test_less_of_the_walk_keeps_more_of_the_picture(tiny: Model) -> None:
    given = pictures()[0]
    found = invert(tiny, given, steps=10, method="exact", times="uniform", **SAID)
    off = [
        far(found.make(strength=s, concept="lemon", guidance=4.0).tensor[0], given) for s in (0.2, 0.5, 1.0)
    ]
    assert off[0] < off[1] < off[2]
    x, times = Inverted(found, 0.5).start(found.path, found.times, 2)
    assert torch.equal(times, found.times[5:])
    assert torch.equal(x, found.trajectory[5].expand(2, -1, -1, -1))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sampler": "ancestral"}, "takes no steps of first order without noise"),
        ({"sampler": {"name": "ddim", "eta": 0.5}}, "give ddim or euler"),
        ({"sampler": "heun"}, "method fixed_point"),
        ({"sampler": "dpm_solver_pp", "method": "exact"}, "carries something from step to step"),
        ({"sampler": "ancestral", "method": "fixed_point"}, "draws noise as it goes"),
        ({"method": "fixed point"}, "did you mean fixed_point"),
        ({"null": "words"}, "give text, prompt or None"),
        ({"tolerance": 0.0}, "above 0"),
        ({"concept": "dog"}, "unknown concept"),
        ({"steps": 0}, "from 1 to 1000"),
    ],
    ids=str,
)
def test_what_cannot_be_undone(tiny: Model, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        invert(tiny, pictures()[0], **{"steps": 4, **SAID, **settings})


def test_edits_of_nothing_found(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match="no inversion is given"):
        generate(tiny, edit="inverted", **SAID)
    found = invert(tiny, pictures()[0], steps=4, times="uniform", **SAID)
    with pytest.raises(InvalidInput, match="was found for pictures of 16 x 16"):
        generate(tiny, edit=Inverted(found), size=24, **SAID)
    with pytest.raises(InvalidInput, match="inversions of one walk"):
        Inversion.joined([found, invert(tiny, pictures()[0], steps=5, times="uniform", **SAID)])


# ---- nulls ----


@pytest.mark.parametrize("scale", [3.0, 7.5])
def test_nulls_that_are_sought_bring_the_picture_back_under_guidance(tiny: Model, scale: float) -> None:
    given = pictures(2)
    found = invert(tiny, given, steps=8, times="uniform", concept=["cat", "lemon"], style="noto")
    sought = null_text(found, scale, batch=1)
    assert len(sought.nulls) == 8
    pivot, plain = found.make().tensor, found.make(guidance=scale).tensor
    assert far(sought.make().tensor, pivot) < 0.65 * far(plain, pivot)
    together = null_text(found, scale)
    for one, other in zip(sought.nulls, together.nulls, strict=True):
        torch.testing.assert_close(one.vector, other.vector, rtol=0, atol=2e-3)
    assert all(p.grad is None for p in tiny.denoiser.parameters())


def test_no_step_ends_worse_than_without_seeking(tiny: Model) -> None:
    """Of each step's own start: what one iteration, which may go astray at such a rate, has found."""
    found = invert(tiny, pictures()[0], steps=8, times="uniform", **SAID)
    sought = null_text(found, 7.5, inner=1, rate=3.0)
    condition = tiny.conditioner(1, **SAID)
    null = tiny.conditioner.null(condition)
    x = found.noise
    for i, (t, s) in enumerate(pairwise(found.times.tolist())):
        here, there, ends = found.path(t), found.path(s), []
        for each in (null, sought.nulls[i]):
            said, unsaid = (tiny.denoiser(x, here, told).x0.detach() for told in (condition, each))
            x0 = torch.lerp(unsaid, said, 7.5)
            eps = (x - here.alpha * x0) / here.sigma
            ends.append(there.alpha * x0 + there.sigma * eps)
        losses = [far(end, found.trajectory[i + 1]) for end in ends]
        assert losses[1] <= losses[0] + 1e-6, i
        null, x = sought.nulls[i], ends[1]


def test_the_picture_s_own_words_as_null_guide_nowhere(tiny: Model) -> None:
    found = invert(tiny, pictures()[0], steps=6, times="uniform", **SAID)
    own = prompt_as_null(found, 5.0)
    torch.testing.assert_close(own.make().tensor, found.make().tensor, rtol=0, atol=1e-4)
    other = own.make(concept="lemon").tensor
    away = found.make(concept="lemon", guidance=5.0, negative=SAID).tensor
    torch.testing.assert_close(other, away, rtol=0, atol=1e-4)


def test_in_one_line(tiny: Model) -> None:
    settings: dict[str, Any] = {"steps": 4, "times": "uniform", **SAID}
    found = invert(tiny, pictures()[0], null="text", scale=3.0, **settings)
    assert len(found.nulls) == 4
    assert found.settings["guidance"] == 3.0
    assert len(invert(tiny, pictures()[0], null="prompt", **settings).nulls) == 4
    with pytest.raises(InvalidInput, match="asks no null"):
        null_text(found, 1)
    solved = invert(tiny, pictures()[0], method="exact", sampler="heun", **settings)
    with pytest.raises(InvalidInput, match="follows steps of ddim or euler"):
        null_text(solved, 3.0)


class Attending(nn.Module):
    """A convolution of x that is moved by the mean of the tokens that are real."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        real = condition.mask if condition.mask is not None else torch.ones(condition.tokens.shape[:2]).bool()
        told = (condition.tokens * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return self.leave(torch.tanh(self.enter(x) + told[:, :, None, None]))


class Words(nn.Module):
    """A token of ones a letter."""

    inputs = ("prompt",)

    def forward(self, count: int, **inputs: Any) -> Condition:
        said = inputs.get("prompt")
        rows = said if isinstance(said, list) else [said] * count
        longest = max(len(row or "-") for row in rows)
        tokens = torch.zeros(count, longest, 8)
        real = torch.zeros(count, longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            for place, letter in enumerate(row or "-"):
                tokens[number, place, ord(letter) % 8] = 1.0
                real[number, place] = True
        return Condition(tokens=tokens, mask=real)

    def null(self, condition: Condition) -> Condition:
        return self(len(condition))

    def check(self, **inputs: Any) -> None:
        """Anything may be said."""


@dataclasses.dataclass(frozen=True)
class Halves:
    """A space whose x is half of a picture of two channels, a quarter of its size."""

    image_channels: int = 2
    step: int = 4

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        return 0.5 * torch.nn.functional.avg_pool2d(image, 2)

    def decode(self, x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(2 * x, scale_factor=2).clamp(-1, 1)

    def preview(self, x: Tensor) -> Tensor:
        return self.decode(x)

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        return 2, height // 2, width // 2


def test_latents_and_tokens() -> None:
    """Nulls of tokens, beside a prompt of another length; guidance chained with another is heeded too."""
    torch.manual_seed(1)
    space: Space = Halves()
    model = Model(
        NetworkDenoiser(Attending(), Flow(), PredictFlow(), "time"), Words(), space, {"guidance": []}
    )
    given = 0.5 * torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    given = space.decode(space.encode(given[None]))[0]
    found = invert(model, given, prompt="kite", steps=8, times="uniform", method="exact")
    assert found.noise.shape == (1, 2, 4, 6)
    assert far(found.make().tensor[0], given) < 1e-3
    plain = far(found.make(guidance=6.0).tensor[0], given)
    sought = null_text(found, 6.0)
    assert sought.nulls[0].tokens is not None
    assert not torch.equal(sought.nulls[0].tokens, model.conditioner(1).tokens)
    assert far(sought.make().tensor[0], given) < 0.5 * plain
    hooked = generate(
        model,
        prompt="kite",
        edit=Inverted(sought),
        steps=8,
        times="uniform",
        sampler="ddim",
        guidance=6.0,
        seed=0,
    )
    torch.testing.assert_close(hooked.tensor, sought.make().tensor)


def test_the_null_of_a_level_is_that_of_the_nearest_step(tiny: Model) -> None:
    found = invert(tiny, pictures()[0], steps=4, times="uniform", **SAID)
    nulls = tuple(Condition(vector=torch.full((1, 5), float(i))) for i in range(4))
    found = dataclasses.replace(found, nulls=nulls)
    for i, t in enumerate(found.times[:-1].tolist()):
        assert found.null_at(found.path(t)) is nulls[i]
    assert found.null_at(Level(1.0, 0.0)) is nulls[3]


# ---- with other edits ----


def test_a_real_picture_s_words_are_edited() -> None:
    """Prompt-to-prompt from an inversion with nulls: the source comes out as alone, the same words change
    nothing, and an edit of no attention is what these words make of the noise by themselves.
    """
    model = prompted()
    given = pictures(1, (8, 8))[0]
    found = invert(model, given, prompt="a red cat", steps=3, times="uniform")
    found = null_text(found, 3.0, inner=2)
    alone = found.make().tensor[0]
    for words, edit in (("a red cat", PromptToPrompt()), ("a red dog", PromptToPrompt(places=64))):
        made = found.make(prompt=["a red cat", words], seeds=[0, 0], edit=edit).tensor
        torch.testing.assert_close(made[0], alone, rtol=0, atol=1e-4)
        assert (far(made[1], alone) < 1e-4) == (words == "a red cat")
    other = found.make(prompt="a red dog").tensor[0]
    none = PromptToPrompt(cross=0.0, self_attention=0.0)
    made = found.make(prompt=["a red cat", "a red dog"], seeds=[0, 0], edit=none).tensor
    torch.testing.assert_close(made[1], other, rtol=0, atol=1e-4)
    region = Region((0, 0, 4, 8))
    with pytest.raises(InvalidInput, match="starts from pictures of its own"):
        found.make(edit=ImageToImage(given))
    blended = LocalBlend(region=region, start=0.0)
    made = found.make(prompt=["a red cat", "a red dog"], seeds=[0, 0], edit=blended).tensor
    torch.testing.assert_close(made[1][:, :, 4:], alone[:, :, 4:], rtol=0, atol=1e-4)
    assert far(made[1][:, :, :4], alone[:, :, :4]) > 1e-4
