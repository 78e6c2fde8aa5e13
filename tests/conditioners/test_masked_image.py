"""Masked images: the channels of the published inpainting models, and holes filled end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build, describe
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel


def picture(seed: int = 0, size: int = 16) -> Tensor:
    drawn = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(seed))
    return drawn / 127.5 - 1


def hole(size: int = 16) -> Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, 3:9, 5:12] = 1
    return mask


def bound(style: Any, space: Any) -> MaskedImage:
    conditioner = MaskedImage(style)
    conditioner.bind(space)
    return conditioner


def scaled(pixels: Tensor) -> Tensor:
    """What the latent space of these tests makes of a picture, by its formula."""
    return 0.5 * (3 * F.pixel_unshuffle(pixels, 2) - 0.25)


def test_stable_diffusion_is_told_mask_then_masked_latents_of_grey(latent: Latent) -> None:
    """[mask in {0, 1} | scale · E(x · (mask < .5))], nearest: pixel 2i stands for the place i."""
    told = bound("sd", latent)(2, image=picture(), mask=hole()).channels
    assert told is not None
    assert told.shape == (2, 13, 8, 8)
    for row in told:
        assert torch.equal(row[:1], hole()[:, ::2, ::2])
        torch.testing.assert_close(row[1:], scaled(picture() * (hole() < 0.5)), rtol=0, atol=1e-6)


def test_latent_diffusion_is_told_masked_latents_of_black_then_mask(latent: Latent) -> None:
    """The picture is masked where it is in [0, 1], the mask in {-1, 1} is last."""
    told = bound("ldm", latent)(1, image=picture(), mask=hole()).channels
    assert told is not None
    black = ((picture() + 1) / 2 * (1 - hole())) * 2 - 1
    torch.testing.assert_close(told[0, :12], scaled(black), rtol=0, atol=1e-6)
    assert torch.equal(told[0, 12:], 2 * hole()[:, ::2, ::2] - 1)


@pytest.mark.parametrize("patch", [1, 2])
def test_pixels_are_told_exactly(patch: int) -> None:
    told = bound("pixel", Pixel(patch=patch, multiple=2))(1, image=picture(), mask=hole()).channels
    assert told is not None
    assert told.shape == (1, 4 * patch**2, 16 // patch, 16 // patch)
    mask, seen = told.split([patch**2, 3 * patch**2], dim=1)
    assert torch.equal(F.pixel_shuffle(mask, patch)[0], hole())
    assert torch.equal(F.pixel_shuffle(seen, patch)[0], picture() * (1 - hole()))


def test_what_the_hole_held_is_not_told(latent: Latent) -> None:
    other = torch.where(hole() > 0, picture(7), picture())
    for style in ("sd", "ldm"):
        conditioner = bound(style, latent)
        one, two = (conditioner(1, image=each, mask=hole()).channels for each in (picture(), other))
        assert torch.equal(one, two)  # type: ignore[arg-type]


def test_rows_are_the_same_alone_and_in_company(latent: Latent) -> None:
    conditioner, masks = bound("sd", latent), [hole(), hole(), 1 - hole()]
    images = [picture(1), picture(2), picture(2)]
    told = conditioner(3, image=images, mask=masks)
    for i in range(3):
        alone = conditioner(1, image=images[i], mask=masks[i])
        assert torch.equal(told[i].channels, alone.channels)  # type: ignore[arg-type]
    null = conditioner.null(told)
    kept = told.where(torch.tensor([False, True, False]), null)
    assert torch.equal(kept.channels, told.channels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"image": picture()}, "mask: this model fills a hole"),
        ({"mask": hole()}, "image: this model fills a hole"),
        ({"image": picture(), "mask": hole()[:, :8]}, "a mask of 16 x 8 for a picture of 16 x 16"),
        ({"image": picture(), "mask": hole(), "depth": 1}, "depth: this model heeds no such input"),
    ],
)
def test_what_does_not_fit_is_refused(latent: Latent, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        bound("sd", latent).check(**inputs)


def test_it_needs_a_model(latent: Latent) -> None:
    with pytest.raises(InvalidInput, match="not a multiple of 4 pixels"):
        bound("sd", latent)(1, image=picture(size=18), mask=hole(18))
    with pytest.raises(InvalidInput, match="stands in no model"):
        MaskedImage()(1, image=picture(), mask=hole())
    with pytest.raises(InvalidInput, match="not sd, ldm or pixel"):
        MaskedImage("hd")  # type: ignore[arg-type]
    assert describe(build("conditioner", describe(MaskedImage("ldm")))) == describe(MaskedImage("ldm"))


def test_the_model_gives_its_space_and_saves_it_once(latent: Latent, model_of: Callable[..., Model]) -> None:
    labels = ClassLabel({"label": ["cat", "dog"]})
    model = model_of(Together((labels, MaskedImage())), 13, latent, classes=2)
    names = [name for part in model.modules().values() for name, _ in part.named_parameters()]
    assert names.count("autoencoder.weight") == 1
    assert not list(model.conditioner.parameters())
    assert model.conditioner.parts[1].space is latent


@pytest.mark.parametrize("style", ["sd", "ldm", "pixel"])
def test_a_hole_is_filled_and_all_else_is_the_same(
    style: Any, latent: Latent, model_of: Callable[..., Model]
) -> None:
    """With a class, guidance and a negative, through the edit; bytes outside the mask are identical."""
    space = Pixel(multiple=2) if style == "pixel" else latent
    labels = ClassLabel({"label": ["cat", "dog"]})
    extra = 4 if style == "pixel" else 13
    model = model_of(Together((labels, MaskedImage(style))), extra, space, classes=2)
    edit = {"name": "inpaint", "image": picture(), "mask": hole()}
    said: dict[str, Any] = {"edit": edit, "guidance": 3.0, "seed": 5}
    made = generate(model, label="cat", **said).tensor
    outside = (hole() == 0).expand(3, -1, -1)
    assert torch.equal(made[0][outside], picture()[outside])
    assert (made[0] - picture())[~outside].abs().max() > 0.01
    for other in ({"label": "dog"}, {"label": "cat", "negative": {"label": "dog"}}):
        assert (generate(model, **other, **said).tensor - made).abs().max() > 1e-4
    elsewhere = {**edit, "image": torch.where(hole() > 0, picture(), picture(9))}
    assert (generate(model, label="cat", **{**said, "edit": elsewhere}).tensor - made)[
        0, hole().expand(3, -1, -1) > 0
    ].abs().max() > 1e-3
    with pytest.raises(InvalidInput, match="fills a hole in a picture and was given none"):
        generate(model, label="cat", seed=5)
