"""Guidance: closed forms, algebra, and what each variant promises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.operators import Downsample
from sfumato.core.prediction import PREDICTIONS
from sfumato.core.process import Process
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.adaptive_projected import AdaptiveProjected
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.compose import Compose
from sfumato.guidance.interval import Interval
from sfumato.guidance.rescale import Rescale
from sfumato.guidance.threshold import Threshold
from sfumato.networks.layers.attention import attend
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.registry import build, names
from sfumato.samplers.heun import Heun
from sfumato.times.karras import Karras

X = 2 * Noise(range(3)).randn((3, 4, 5, 5), "x").double()


def told(value: float, rows: int = 3) -> Condition:
    return Condition(vector=torch.full((rows, 1), value, dtype=torch.float64))


class Means:
    """Data N(mean, .5²) where the condition's vector is the mean; null is mean 0. Remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Condition]] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.calls.append((len(x), condition))
        assert condition.vector is not None
        mean = condition.vector.view(-1, *[1] * (x.ndim - 1))
        return Denoised(
            (level.alpha * 0.25 * x + level.sigma**2 * mean) / (level.alpha**2 * 0.25 + level.sigma**2)
        )


class Waves(Means):
    """As nonlinear in x and condition as one likes, so that no test passes by linearity."""

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        plain = super().__call__(x, level, condition).x0
        assert condition.vector is not None
        return Denoised(torch.sin(3 * plain) + plain * condition.vector.view(-1, *[1] * (x.ndim - 1)), plain)


class Attentive(Waves):
    """The same, of places that attend to one another at a site called "middle"."""

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        context, places = Context(torch.zeros(len(x), 1), condition), x.flatten(2).mT[:, None]
        seen = attend(Site("middle", "self"), context, places, places, places)
        return super().__call__(seen[:, 0].mT.view_as(x), level, condition)


NULL, GIVEN, LEVEL = told(0.0), told(2.0), Level(0.8, 0.6)


def test_guided_gaussians() -> None:
    """Sheet 10 §5: guidance by 3 from N(0, .5²) to N(2, .5²) samples N(6, .5²); 400 Heun steps.

    (The sheet does not say which grid its own 400 steps took, hence 7e-6; the exact flow is 4.5e-5 away.)
    """
    process, z = EDM(), torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    reverse = ReverseProcess(ClassifierFree(3.0)(Means(), told(0.0)), process, told(2.0))
    ours = sample(Heun(), reverse, 80 * z, Karras()(process, 400)).flatten()
    assert ours.tolist() == pytest.approx([5.462461, 5.962497, 6.462533], abs=7e-6)
    exact = 6 + (80 * z.flatten() - 6) * 0.5 / math.sqrt(0.25 + 6400)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("process", ["vp", "flow", "ve"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_the_guided_gaussian_on_every_path(process: str, scale: float) -> None:
    path = build("process", process)
    guided = ClassifierFree(scale)(Means(), told(0.0, 2))
    exact = GaussianMixture.gaussian(2 * scale, 0.5)
    x = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    for t in (0.2, 0.7):
        torch.testing.assert_close(guided(x, path(t), told(2.0, 2)).x0, exact(x, path(t)).x0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 7.5])
def test_the_formula(scale: float) -> None:
    model = Waves()
    without, given = (model(X, LEVEL, c).x0 for c in (NULL, GIVEN))
    guided, variance = ClassifierFree(scale)(model, NULL)(X, LEVEL, GIVEN)
    torch.testing.assert_close(guided, without + scale * (given - without), rtol=1e-12, atol=1e-12)
    if scale:
        torch.testing.assert_close(variance, model(X, LEVEL, GIVEN).variance)


@pytest.mark.parametrize("scale, condition", [(1.0, GIVEN), (0.0, NULL)])
def test_one_branch_costs_one_call(scale: float, condition: Condition) -> None:
    model = Waves()
    guided = ClassifierFree(scale)(model, NULL)(X, LEVEL, GIVEN).x0
    assert [(rows, told) for rows, told in model.calls] == [(3, condition)]
    assert torch.equal(guided, Waves()(X, LEVEL, condition).x0)


def test_two_branches_cost_one_batched_call() -> None:
    model = Waves()
    ClassifierFree(2.0)(model, NULL)(X, LEVEL, GIVEN)
    ((rows, condition),) = model.calls
    assert rows == 6
    assert condition.branch is not None
    assert condition.branch.tolist() == [0, 0, 0, 1, 1, 1]
    assert condition.vector is not None
    assert condition.vector[:3].max() == 0


def test_levels_of_rows_are_repeated() -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    guided = ClassifierFree(3.0)(Waves(), NULL)
    together = guided(X, VP()(t).like(X), GIVEN).x0
    for row in range(3):
        alone = ClassifierFree(3.0)(Waves(), NULL[row])(X[row : row + 1], VP()(t[row].item()), GIVEN[row]).x0
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_negative_prompt_is_a_null() -> None:
    model, negative = Waves(), told(-1.0)
    bad, good = (model(X, LEVEL, c).x0 for c in (negative, GIVEN))
    guided = ClassifierFree(4.0)(model, negative)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(guided, bad + 4 * (good - bad), rtol=1e-12, atol=1e-12)


def test_only_some_channels() -> None:
    model = Waves()
    every = ClassifierFree(4.0)(model, NULL)(X, LEVEL, GIVEN).x0
    three = ClassifierFree(4.0, channels=3)(model, NULL)(X, LEVEL, GIVEN).x0
    assert torch.equal(three[:, :3], every[:, :3])
    torch.testing.assert_close(three[:, 3:], model(X, LEVEL, GIVEN).x0[:, 3:], rtol=1e-14, atol=0)


class Says(nn.Module):
    """A network that says what a prediction would have the model Waves say."""

    def __init__(self, process: Process, name: str) -> None:
        super().__init__()
        self.process, self.prediction = process, PREDICTIONS[name]()

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        level = self.process(time[0].item())
        x = x / self.prediction.scale(level)
        skip, out = self.prediction.coefficients(level)
        return (Waves()(x, level, condition).x0 - skip * x) / out


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_guiding_is_the_same_on_every_prediction(prediction: str, process: Process) -> None:
    """Outputs are linear in x0, so guiding them (as the papers do) or x0 (as we do) is one thing."""
    level, network = process(0.5), Says(process, prediction)
    model = NetworkDenoiser(network, process, PREDICTIONS[prediction](), "time")
    ours = ClassifierFree(3.0)(model, NULL)(X, level, GIVEN).x0
    skip, out = PREDICTIONS[prediction]().coefficients(level)
    x_in, time = X * PREDICTIONS[prediction]().scale(level), torch.full((3,), 0.5)
    without, given = (network(x_in, time, c) for c in (NULL, GIVEN))
    torch.testing.assert_close(
        ours, skip * X + out * (without + 3 * (given - without)), rtol=1e-12, atol=1e-12
    )
    expected = ClassifierFree(3.0)(Waves(), NULL)(X, level, GIVEN).x0
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "low, high, inside", [(0.5, 1.0, True), (0.75, 1.0, False), (0.0, 0.75, True), (2.0, 1.0, False)]
)
def test_interval(low: float, high: float, inside: bool) -> None:
    """The level here has sigma/alpha .75; the interval is open below and closed above."""
    model = Waves()
    guided = Interval(low, high, ClassifierFree(3.0))(model, NULL)(X, LEVEL, GIVEN).x0
    assert model.calls[0][0] == (6 if inside else 3)
    plain = ClassifierFree(3.0)(Waves(), NULL) if inside else Waves()
    assert torch.equal(guided, plain(X, LEVEL, GIVEN).x0)


def test_an_empty_interval_samples_the_conditional_model() -> None:
    process, x = VP(), X[:, 0, 0]
    times = build("times", "uniform")(process, 6)
    never = Interval(5.0, 5.0)(Waves(), NULL)
    ours, plain = (sample(Heun(), ReverseProcess(d, process, GIVEN), x, times) for d in (never, Waves()))
    assert torch.equal(ours, plain)


def eps_of(x0: Tensor) -> Tensor:
    return (X - LEVEL.alpha * x0) / LEVEL.sigma


def test_rescale_restores_the_contrast() -> None:
    model = Waves()
    given = eps_of(model(X, LEVEL, GIVEN).x0)
    full = eps_of(Rescale(7.5, 1.0)(model, NULL)(X, LEVEL, GIVEN).x0)
    plain = eps_of(ClassifierFree(7.5)(model, NULL)(X, LEVEL, GIVEN).x0)
    axes = (1, 2, 3)
    torch.testing.assert_close(full.std(axes), given.std(axes), rtol=1e-10, atol=0)
    assert (plain.std(axes) / given.std(axes) - 1).abs().min() > 0.1
    some = eps_of(Rescale(7.5, 0.7)(model, NULL)(X, LEVEL, GIVEN).x0)
    torch.testing.assert_close(some, 0.7 * full + 0.3 * plain, rtol=1e-10, atol=1e-10)


def test_rescale_by_nothing_is_classifier_free() -> None:
    ours = Rescale(3.0, 0.0)(Waves(), NULL)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(ours, ClassifierFree(3.0)(Waves(), NULL)(X, LEVEL, GIVEN).x0)
    assert torch.equal(Rescale(1.0)(Waves(), NULL)(X, LEVEL, GIVEN).x0, Waves()(X, LEVEL, GIVEN).x0)


def test_rescale_at_pure_noise_is_finite() -> None:
    level = Flow()(1.0)
    ours = Rescale(3.0)(Waves(), NULL)(X, level, GIVEN).x0
    torch.testing.assert_close(ours, ClassifierFree(3.0)(Waves(), NULL)(X, level, GIVEN).x0)


def test_projected_guidance_moves_across_the_estimate() -> None:
    given = Waves()(X, LEVEL, GIVEN).x0
    plain = ClassifierFree(3.0)(Waves(), NULL)(X, LEVEL, GIVEN).x0
    every = AdaptiveProjected(3.0, parallel=1, norm=math.inf, momentum=0)(Waves(), NULL)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(every, plain)
    across = AdaptiveProjected(3.0, norm=math.inf, momentum=0)(Waves(), NULL)(X, LEVEL, GIVEN).x0 - given
    along = (across * given).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)
    # What was taken off lies along the estimate of each sample: all of it, and nothing else.
    rest = (plain - given - across).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(rest, given.flatten(1))
    torch.testing.assert_close(cosine.abs(), torch.ones_like(cosine), rtol=0, atol=1e-10)


def test_projected_guidance_is_as_long_as_it_may_be() -> None:
    given = Waves()(X, LEVEL, GIVEN).x0
    short, long = (
        AdaptiveProjected(3.0, parallel=1, norm=norm, momentum=0)(Waves(), NULL)(X, LEVEL, GIVEN).x0 - given
        for norm in (0.5, math.inf)
    )
    torch.testing.assert_close(short.flatten(1).norm(dim=1), torch.full((3,), 2 * 0.5).double())
    direction = torch.nn.functional.cosine_similarity(short.flatten(1), long.flatten(1))
    torch.testing.assert_close(direction, torch.ones_like(direction))


def test_projected_guidance_remembers_one_walk() -> None:
    """Asked the same again and again, differences add up to d (1 - mⁿ) / (1 - m)."""
    guidance = AdaptiveProjected(2.0, parallel=1, norm=math.inf, momentum=-0.5)
    given = Waves()(X, LEVEL, GIVEN).x0
    d = given - Waves()(X, LEVEL, NULL.tile(3)).x0
    for _ in range(2):
        walk = guidance(Waves(), NULL)
        for n in range(1, 5):
            expected = given + d * (1 - (-0.5) ** n) / 1.5
            torch.testing.assert_close(walk(X, LEVEL, GIVEN).x0, expected)


@pytest.mark.parametrize("wrong", [{"momentum": -1.0}, {"norm": 0.0}, {"norm": math.nan}])
def test_projected_guidance_that_is_none(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match=f"adaptive_projected.{next(iter(wrong))}"):
        AdaptiveProjected(**wrong)


def test_static_threshold() -> None:
    ours = Threshold()(Waves(), NULL)(X, LEVEL, GIVEN).x0
    assert torch.equal(ours, Waves()(X, LEVEL, GIVEN).x0.clamp(-1, 1))
    assert ours.max() == 1


@pytest.mark.parametrize("bound, most", [(1.0, 100.0), (1.0, 1.5), (50.0, 100.0)])
def test_dynamic_threshold(bound: float, most: float) -> None:
    """Each sample's own percentile, never below the bound and never above the most."""
    ours, variance = Threshold(0.9, bound, most)(Waves(), NULL)(X, LEVEL, GIVEN)
    plain = Waves()(X, LEVEL, GIVEN).x0
    for row in range(3):
        ordered = plain[row].abs().flatten().sort().values
        place = 0.9 * (len(ordered) - 1)
        low = int(place)
        q = float(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]))
        q = min(max(q, bound), most)
        torch.testing.assert_close(ours[row], plain[row].clamp(-q, q) * bound / q, rtol=1e-6, atol=1e-6)
    assert ours.abs().max() <= bound * (1 + 1e-6)
    assert variance is not None


def test_threshold_of_a_row_does_not_see_the_others() -> None:
    threshold = Threshold(0.995)
    alone = threshold(Waves(), NULL[1])(X[1:2], LEVEL, GIVEN[1]).x0
    torch.testing.assert_close(threshold(Waves(), NULL)(X, LEVEL, GIVEN).x0[1:2], alone)


def test_composing_one_condition_is_classifier_free() -> None:
    ours, variance = Compose(3.0)(Waves(), NULL)(X, LEVEL, GIVEN)
    expected = ClassifierFree(3.0)(Waves(), NULL)(X, LEVEL, GIVEN)
    torch.testing.assert_close(ours, expected.x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, expected.variance)


def test_composing_two() -> None:
    other = told(-1.0)
    model = Waves()
    ours = Compose(3.0, (1.5,), (other,))(model, NULL)(X, LEVEL, GIVEN).x0
    assert [rows for rows, _ in model.calls] == [9]
    one, two = (ClassifierFree(s)(Waves(), NULL)(X, LEVEL, c).x0 for s, c in ((3.0, GIVEN), (1.5, other)))
    torch.testing.assert_close(ours, one + two - Waves()(X, LEVEL, NULL).x0, rtol=1e-12, atol=1e-12)


def test_composed_gaussians_add_their_means() -> None:
    x = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
    composed = Compose(2.0, (-1.0,), (told(3.0, 2),))(Means(), told(0.0, 2))
    exact = GaussianMixture.gaussian(2 * 2.0 - 1 * 3.0, 0.5)
    torch.testing.assert_close(composed(x, LEVEL, told(2.0, 2)).x0, exact(x, LEVEL).x0)


def test_every_other_condition_needs_a_scale() -> None:
    with pytest.raises(InvalidInput, match="scales"):
        Compose(3.0, (1.0, 2.0), (GIVEN,))


class Second:
    """A second model for guidances that need one: a denoiser, and a log-probability."""

    denoiser = Waves()

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
        return -(x**2).flatten(1).sum(1) * level.alpha


def ready(name: str) -> Any:
    """A guidance by name, with a second model or a measurement if it takes one."""
    guidance = build("guidance", name)
    needed = {"model": Second(), "operator": Downsample(5), "measurement": torch.ones(1, 4, 1, 1)}
    taken = {field: value for field, value in needed.items() if hasattr(guidance, field)}
    return dataclasses.replace(guidance, **taken)


SEEN = torch.ones(3, 1, 5, 5, dtype=torch.float64)
SHOWN = dataclasses.replace(GIVEN, channels=SEEN, hints=(SEEN,))
"""With a picture beside, which guidance by picture and text asks for, and a hint, which controls do."""
HIDDEN = dataclasses.replace(NULL, channels=torch.zeros_like(SEEN), hints=(SEEN,))
AGAIN = {"adaptive_projected", "classifier_free", "compose", "rescale", "interval", "image_and_text"}


@pytest.mark.parametrize("name", names("guidance"))
def test_guidances_stack(name: str) -> None:
    """By registry: each takes a denoiser and gives one, so that any two combine."""
    outer, null = ready(name), HIDDEN
    for other in names("guidance"):
        inner = ready(other)(Attentive(), null)
        if name in AGAIN and other != "threshold":
            continue  # a guided denoiser is not guided again: its null would meet twice the rows
        if name == "control_scale" and other in AGAIN:
            with pytest.raises(InvalidInput, match="put control_scale first"):
                outer(inner, null)(X, LEVEL, SHOWN)
            continue
        x0 = outer(inner, null)(X, LEVEL, SHOWN).x0
        assert x0.shape == X.shape
        assert x0.isfinite().all()


@pytest.mark.parametrize("name", names("guidance"))
def test_a_row_alone_is_the_row_in_a_batch(name: str) -> None:
    guidance, null = ready(name), HIDDEN
    together = guidance(Attentive(), null)(X, LEVEL, SHOWN).x0
    for row in range(3):
        alone = guidance(Attentive(), null[row])(X[row : row + 1], LEVEL, SHOWN[row]).x0
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-10)


def test_guidance_around_guidance_multiplies() -> None:
    """Classifier-free guidance of scale a around one of scale b is one of scale a · b."""
    x = torch.randn(3, 2, dtype=torch.float64)
    given, null = Condition(vector=torch.randn(3, 2).double()), Condition(vector=torch.zeros(3, 2).double())

    def linear(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        assert condition.vector is not None
        return Denoised(x + condition.vector)

    twice = ClassifierFree(3.0)(ClassifierFree(2.0)(linear, null), null)
    once = ClassifierFree(6.0)(linear, null)
    level = Level(0.6, 0.8)
    assert torch.allclose(twice(x, level, given).x0, once(x, level, given).x0, atol=1e-12)
