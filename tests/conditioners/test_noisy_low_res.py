"""Noisy low resolution: the published noising, the same for a picture wherever it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.noisy_low_res import NoisyLowRes
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.processes.betas import Betas
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel


def picture(seed: int = 0, size: int = 16) -> Tensor:
    drawn = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed))
    return drawn / 127.5 - 1


def made(**settings: Any) -> NoisyLowRes:
    return NoisyLowRes(**settings).eval()


@pytest.mark.parametrize("level", [0, 20, 137, 350])
def test_noised_as_the_x4_upscaler_is_told(level: int) -> None:
    """q at index k of diffusers' scheduler with the upscaler's settings, and k as a class."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000, 0.0001, 0.02, "scaled_linear")
    told = made()(1, low_res=picture(), noise_level=level, noise_seed=11)
    noise = Noise([11]).randn((1, 3, 16, 16), "low_res")
    expected = scheduler.add_noise(picture()[None], noise, torch.tensor([level]))
    torch.testing.assert_close(told.channels, expected, rtol=0, atol=5e-6)
    assert torch.equal(told.vector, F.one_hot(torch.tensor([level]), 1000).float())


def test_a_cascade_is_told_it_stretched_then_noised() -> None:
    told = made(factor=4, process=Betas(), levels=0)(1, low_res=picture(), noise_level=99, noise_seed=3)
    power = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[99]
    wide = F.interpolate(picture()[None], (64, 64), mode="bilinear").double()
    expected = power.sqrt() * wide + (1 - power).sqrt() * Noise([3]).randn((1, 3, 64, 64), "low_res")
    torch.testing.assert_close(told.channels.double(), expected, rtol=0, atol=1e-6)  # type: ignore[union-attr]
    assert told.vector is None


def test_a_picture_has_its_own_noise_alone_in_a_batch_and_in_the_null() -> None:
    conditioner = made()
    told = conditioner(3, low_res=[picture(1), picture(2), picture(1)], noise_level=[None, 300, 20])
    assert torch.equal(told.channels[0], told.channels[2])  # type: ignore[index]
    alone = conditioner(1, low_res=picture(2), noise_level=300)
    assert torch.equal(told[1].channels, alone.channels)  # type: ignore[arg-type]
    noises = [told.channels[0] - picture(1), conditioner(1, low_res=picture(2)).channels[0] - picture(2)]  # type: ignore[index]
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noises]))[0, 1])) < 0.2
    null = conditioner.null(told)
    dropped = told.where(torch.tensor([False, True, False]), null)
    for slot in ("channels", "vector"):
        assert torch.equal(getattr(dropped, slot), getattr(told, slot))


def test_while_training_levels_and_noise_are_drawn_anew_as_dropout_is() -> None:
    conditioner = NoisyLowRes(most=7, level=3, levels=8)
    torch.manual_seed(0)
    told = [conditioner(1, low_res=picture()) for _ in range(60)]
    levels = {int(each.vector.argmax()) for each in told}  # type: ignore[union-attr]
    assert levels == set(range(7)), "as published, the highest is not drawn"
    torch.manual_seed(0)
    assert torch.equal(conditioner(1, low_res=picture()).channels, told[0].channels)  # type: ignore[arg-type]
    pair = [conditioner(1, low_res=picture(), noise_level=5).channels for _ in range(2)]
    assert (pair[0] - pair[1]).abs().max() > 1e-3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"low_res": picture(), "noise_level": 351}, "351 is no level"),
        ({"low_res": picture(), "noise_level": -1}, "-1 is no level"),
        ({"low_res": picture(), "noise_level": 20.5}, "20.5 is no level"),
        ({"low_res": picture(), "noise_seed": -2}, "noise_seed"),
        ({"low_res": torch.full((3, 4, 4), 200.0)}, "-1 to 1"),
        ({"low_res": picture(), "level": 3}, "no such input"),
    ],
)
def test_what_is_none_is_refused(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        made().check(**inputs)


def test_settings() -> None:
    for wrong in ({"level": 400}, {"most": 1000}, {"levels": 350}, {"factor": 0}, {"colors": 2}):
        with pytest.raises(InvalidInput, match="noisy_low_res"):
            NoisyLowRes(**wrong)
    settings = describe(NoisyLowRes(2, 1, Betas("cosine"), 5, 9, 10))
    assert describe(build("conditioner", settings)) == settings
    with pytest.raises(InvalidInput, match="was given none"):
        made()(2)


def test_a_model_enlarges(model_of: Callable[..., Model]) -> None:
    """x of the small picture's own places, as the x4 upscaler's latents are; the level matters."""
    conditioner = NoisyLowRes(levels=400)
    model = model_of(conditioner, 3, Pixel(multiple=2), classes=400)
    said: dict[str, Any] = {"seed": 3, "guidance": 2.0}
    one = generate(model, low_res=picture(1), **said).tensor
    assert torch.equal(generate(model, low_res=picture(1), noise_level=20, **said).tensor, one)
    for other in ({"low_res": picture(2)}, {"low_res": picture(1), "noise_level": 300}):
        assert (generate(model, **other, **said).tensor - one).abs().max() > 1e-3
