"""Images to be turned into others: unscaled latents, or pixels as they are; zeros for none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.image import Image
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build, describe
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel


def picture(channels: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.randint(0, 256, (channels, 16, 16), generator=torch.Generator().manual_seed(seed))
    return drawn / 127.5 - 1


def bound(space: Any, **settings: Any) -> Image:
    conditioner = Image(**settings)
    conditioner.bind(space)
    return conditioner


def test_latents_are_told_as_the_autoencoder_makes_them(latent: Latent) -> None:
    """InstructPix2Pix: the posterior's mode, not multiplied by the scale; with `scaled`, as x is."""
    mode = 3 * F.pixel_unshuffle(picture(), 2)[None]
    torch.testing.assert_close(bound(latent)(1, image=picture()).channels, mode, rtol=0, atol=1e-5)
    told = bound(latent, scaled=True)(1, image=picture()).channels
    torch.testing.assert_close(told, 0.5 * (mode - 0.25), rtol=0, atol=1e-5)
    torch.testing.assert_close(told, latent.encode(picture()[None]), rtol=0, atol=0)


@pytest.mark.parametrize("colors", [0, 1])
@pytest.mark.parametrize("patch", [1, 2])
def test_pixels_are_told_as_they_are(patch: int, colors: int) -> None:
    given = picture(colors or 3)
    told = bound(Pixel(patch=patch, multiple=2), colors=colors)(2, image=given).channels
    assert told is not None
    for row in told:
        assert torch.equal(F.pixel_shuffle(row, patch), given)


def test_no_picture_is_zeros_in_a_row_and_in_the_null(latent: Latent) -> None:
    conditioner = bound(latent)
    told = conditioner(3, image=[picture(seed=1), None, picture(seed=2)])
    assert told.channels is not None
    null = conditioner.null(told)
    assert torch.equal(told.channels[1], torch.zeros(12, 8, 8))
    assert not null.channels.any()  # type: ignore[union-attr]
    alone = conditioner(1, image=picture(seed=2)).channels
    assert torch.equal(told.channels[2:], alone)  # type: ignore[arg-type]
    dropped = told.where(torch.tensor([True, True, False]), null).channels
    assert torch.equal(dropped[0], told.channels[0])  # type: ignore[index]
    assert not dropped[2].any()  # type: ignore[index]
    for nothing in (None, [None, None]):
        with pytest.raises(InvalidInput, match="was given none"):
            conditioner(2, image=nothing)


def test_what_does_not_fit_is_refused(latent: Latent) -> None:
    conditioner = bound(latent)
    for given, said in (
        (torch.zeros(1, 16, 16), "a tensor"),
        (3, "no picture"),
    ):
        with pytest.raises(InvalidInput, match=said):
            conditioner.check(image=given)
    with pytest.raises(InvalidInput, match="not a multiple"):
        conditioner(1, image=torch.zeros(3, 16, 18))
    with pytest.raises(InvalidInput, match="of one size"):
        conditioner(2, image=[torch.zeros(3, 16, 16), torch.zeros(3, 8, 8)])
    with pytest.raises(InvalidInput, match="no such input"):
        conditioner.check(image=picture(), mask=picture(1))
    with pytest.raises(InvalidInput, match="its own number"):
        bound(latent, colors=1)
    with pytest.raises(InvalidInput, match="none of a picture"):
        Image(colors=2)
    with pytest.raises(InvalidInput, match="stands in no model"):
        Image()(1, image=picture())
    settings = describe(Image(True, 1))
    assert describe(build("conditioner", settings)) == settings


@pytest.mark.parametrize("pixels", [False, True])
def test_a_model_translates(pixels: bool, latent: Latent, model_of: Callable[..., Model]) -> None:
    labels = ClassLabel({"label": ["cat", "dog"]})
    settings = (3, Pixel(multiple=2), 2) if pixels else (12, latent, 2)
    model = model_of(Together((labels, Image())), *settings)
    said: dict[str, Any] = {"label": "cat", "guidance": 2.0, "seed": 3}
    one = generate(model, image=picture(seed=1), **said).tensor
    assert (generate(model, image=picture(seed=2), **said).tensor - one).abs().max() > 1e-3
    negative = generate(model, image=picture(seed=1), **said, negative={"label": "dog"}).tensor
    assert (negative - one).abs().max() > 1e-3
    with pytest.raises(InvalidInput, match="was given none"):
        generate(model, **said)
