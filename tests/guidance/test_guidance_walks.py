"""Every guidance with every sampler, by registry: guided Gaussians are Gaussians, walked as such."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.hooks import Context, Site
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.adaptive_projected import AdaptiveProjected
from sfumato.guidance.auto import Auto
from sfumato.guidance.classifier import Classifier
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.compose import Compose
from sfumato.guidance.image_and_text import ImageAndText
from sfumato.guidance.interval import Interval
from sfumato.guidance.inverse_problem import InverseProblem
from sfumato.guidance.perturbed_attention import PerturbedAttention
from sfumato.guidance.rescale import Rescale
from sfumato.guidance.threshold import Threshold
from sfumato.networks.layers.attention import attend
from sfumato.processes.vp import VP
from sfumato.registry import build, names

STD = 0.5


def told(value: float) -> Condition:
    """What the mean is, and a picture that says nothing of it."""
    vector = torch.full((3, 1), value, dtype=torch.float64)
    return Condition(vector=vector, channels=vector.view(3, 1, 1, 1))


class Attentive:
    """Data N(mean, .5²), the condition's vector being the mean; 1 less where attention is the identity.

    Two places hold 0 and -2; attention among equals gives both -1, to which 1 is added.
    """

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        same, held = torch.zeros(len(x), 1, 2, 1).double(), torch.tensor([0.0, -2.0]).double()
        context = Context(torch.zeros(len(x), 1), condition)
        seen = attend(
            Site("middle", "self"), context, same, same, held.view(1, 1, 2, 1).expand(len(x), -1, -1, -1)
        )
        assert condition.vector is not None
        mean = condition.vector + 1 + seen[:, 0, 1]
        power = (level.alpha * STD) ** 2 + level.sigma**2
        return Denoised((level.alpha * STD**2 * x + level.sigma**2 * mean) / power)


def to_the_right(x: Tensor, level: Level[Any], condition: Condition) -> Tensor:
    """log p(y | x_t) = 2 E[x0 | x_t] + constant: the class moves N(2, .5²) by 2 · .5²."""
    return 2 * Attentive()(x, level, condition).x0.sum(1)


def weak(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
    return Attentive()(x, level, told(1.5))


NOISE = 0.4
POSTERIOR = 1 / (1 / STD**2 + 9 / NOISE**2)
MEASURED: dict[str, Any] = {"operator": lambda x: 3 * x, "measurement": torch.tensor([[4.5, 4.5]]).double()}
LAWS: dict[str, tuple[Any, float, float]] = {
    "adaptive_projected": (AdaptiveProjected(3.0, 1.0, math.inf, 0.0), 6.0, STD),
    "auto": (Auto(3.0, weak), 1.5 + 3 * 0.5, STD),
    "classifier": (Classifier(1.5, to_the_right), 2 + 1.5 * 2 * STD**2, STD),
    "classifier_free": (ClassifierFree(3.0), 6.0, STD),
    "compose": (Compose(2.0, (-1.0,), (told(3.0),)), 1.0, STD),
    "image_and_text": (ImageAndText(3.0, 0.5), 6.0, STD),
    "interval": (Interval(guidance=Auto(3.0, weak)), 3.0, STD),
    "inverse_problem": (
        InverseProblem(**MEASURED, method="moments", noise_std=NOISE, iterations=1),
        POSTERIOR * (2 / STD**2 + 3 * 4.5 / NOISE**2),
        math.sqrt(POSTERIOR),
    ),
    "perturbed_attention": (PerturbedAttention(2.5), 2 + 2.5 * 1.0, STD),
    "rescale": (Rescale(3.0, 0.0), 6.0, STD),
    "threshold": (Threshold(bound=1e3), 2.0, STD),
}
"""Of N(2, .5²) with the null N(0, .5²): (guidance, mean, standard deviation) of what it samples."""


def walk(denoiser: Any, sampler: str, condition: Condition) -> Tensor:
    process = VP()
    reverse = ReverseProcess(denoiser, process, condition, Noise(range(3)))
    x = reverse.prior((3, 2)).double()
    return sample(build("sampler", sampler), reverse, x, build("times", "uniform")(process, 7))


def test_every_guidance_has_a_law() -> None:
    """Windows are of maps, not of points: test_guidance_windows.py walks them; controls are of networks."""
    assert set(names("guidance")) - {"windows", "control_scale"} == set(LAWS)


@pytest.mark.parametrize("guidance", sorted(LAWS))
@pytest.mark.parametrize("sampler", names("sampler"))
def test_every_walk_of_a_guided_gaussian_is_that_of_its_law(sampler: str, guidance: str) -> None:
    """Sample for sample, so that neither the sampler's own error nor chance needs a tolerance."""
    guide, mean, std = LAWS[guidance]
    with torch.inference_mode():
        ours = walk(guide(Attentive(), told(0.0)), sampler, told(2.0))
        law = walk(GaussianMixture.gaussian(mean, std, 2), sampler, Condition())
    torch.testing.assert_close(ours, law, rtol=1e-6, atol=1e-6)


def test_the_laws_tell_apart() -> None:
    """What a walk without guidance samples is far from every law, so that the test above can fail."""
    plain = walk(Attentive(), "heun", told(2.0))
    for name, (_, mean, std) in LAWS.items():
        apart = (walk(GaussianMixture.gaussian(mean, std, 2), "heun", Condition()) - plain).abs().max()
        assert (apart > 0.1) == (name != "threshold"), name


@pytest.mark.parametrize("guidance", sorted(set(LAWS) - {"interval", "threshold"}))
def test_the_interval_holds_any_guidance(guidance: str) -> None:
    """Inside it the guidance, at its borders the model alone."""
    guide, mean, std = LAWS[guidance]
    x = torch.tensor([[0.3, 0.1], [-2.0, 1.0], [1.0, 0.0]]).double()
    guided = Interval(0.5, 2.0, guide)(Attentive(), told(0.0))
    inside, outside = Level(0.8, 0.6), Level(0.4, 0.9)
    exact = GaussianMixture.gaussian(mean, std, 2)(x, inside).x0
    torch.testing.assert_close(guided(x, inside, told(2.0)).x0, exact)
    assert torch.equal(guided(x, outside, told(2.0)).x0, Attentive()(x, outside, told(2.0)).x0)
