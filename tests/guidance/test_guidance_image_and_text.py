"""Guidance by a picture and a text: InstructPix2Pix's equation 3, in closed form and in a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.image_and_text import ImageAndText
from sfumato.processes.vp import VP
from sfumato.registry import build, describe

STD = 0.5
LEVEL: Level[float] = Level(0.8, 0.6)
X = torch.linspace(-2, 2, 6, dtype=torch.float64).view(3, 2)


def told(picture: float, text: float) -> Condition:
    return Condition(
        vector=torch.full((3, 1), text, dtype=torch.float64),
        channels=torch.full((3, 1, 1, 1), picture, dtype=torch.float64),
    )


class Edited:
    """Data N(m, .5²): m = picture + text · (1 + picture), so that the text changes more of more picture."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.calls.append(len(x))
        assert condition.vector is not None
        assert condition.channels is not None
        picture, text = condition.channels[:, :, 0, 0], condition.vector
        mean = picture + text * (1 + picture)
        power = (level.alpha * STD) ** 2 + level.sigma**2
        x0 = (level.alpha * STD**2 * x + level.sigma**2 * mean) / power
        return Denoised(x0, (picture + text).expand_as(x))


def law(mean: float) -> GaussianMixture:
    return GaussianMixture.gaussian(mean, STD, 2)


@pytest.mark.parametrize(
    ("scale", "image_scale"), [(7.5, 1.5), (0.0, 2.0), (3.0, 0.0), (1.0, 1.0), (2.0, 2.0)]
)
def test_a_guided_gaussian_is_the_gaussian_of_equation_3(scale: float, image_scale: float) -> None:
    """Of picture .5 and text 2: nothing 0, the picture alone .5, both .5 + 2 · 1.5."""
    mean = 0 + image_scale * (0.5 - 0) + scale * (3.5 - 0.5)
    model = Edited()
    guided = ImageAndText(scale, image_scale)(model, told(0.0, 0.0))
    torch.testing.assert_close(guided(X, LEVEL, told(0.5, 2.0)).x0, law(mean)(X, LEVEL).x0)
    assert model.calls == ([3] if scale == image_scale == 1 else [9])
    reverse = ReverseProcess(guided, VP(), told(0.5, 2.0), Noise(range(3)))
    exact = ReverseProcess(law(mean), VP(), source=Noise(range(3)))
    times = build("times", "uniform")(VP(), 9)
    ends = [sample(build("sampler", "heun"), each, X, times) for each in (reverse, exact)]
    torch.testing.assert_close(*ends)


def test_a_negative_prompt_keeps_the_picture_and_stands_for_no_text() -> None:
    """generate gives a null that holds the picture; the first branch has none of it all the same."""
    negative = told(0.5, -1.0)
    guided = ImageAndText(3.0, 1.5)(Edited(), negative)
    nothing, picture, both = -1.0, 0.5 - 1.5, 3.5
    mean = nothing + 1.5 * (picture - nothing) + 3.0 * (both - picture)
    torch.testing.assert_close(guided(X, LEVEL, told(0.5, 2.0)).x0, law(mean)(X, LEVEL).x0)


def test_equal_scales_are_classifier_free_guidance_by_both() -> None:
    null, said = told(0.0, 0.0), told(0.7, -0.4)
    both = ImageAndText(4.0, 4.0)(Edited(), null)(X, LEVEL, said)
    plain = ClassifierFree(4.0)(Edited(), null)(X, LEVEL, said)
    torch.testing.assert_close(both.x0, plain.x0)
    assert torch.equal(both.variance, plain.variance)


def test_a_null_of_one_row_serves_a_batch_and_no_picture_is_told() -> None:
    one = told(0.0, 0.0)[0]
    said = told(0.5, 2.0)
    whole = ImageAndText()(Edited(), told(0.0, 0.0))(X, LEVEL, said).x0
    assert torch.equal(ImageAndText()(Edited(), one)(X, LEVEL, said).x0, whole)
    with pytest.raises(InvalidInput, match=r"image_and_text: this model is told no picture \(guidance"):
        ImageAndText()(Edited(), one)(X, LEVEL, replace(said, channels=None))
    assert describe(build("guidance", {"name": "image_and_text", "image_scale": 2})) == {
        "name": "image_and_text",
        "image_scale": 2.0,
    }
