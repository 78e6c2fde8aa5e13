"""Maps of another size than the picture that is made: resized in one way, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from sfumato.conditioners.augmented import Augmented
from sfumato.conditioners.beside import fitted
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.depth import Depth
from sfumato.conditioners.image import Image
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.noisy_low_res import NoisyLowRes
from sfumato.conditioners.semantic_map import SemanticMap
from sfumato.conditioners.sizes import Sizes
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.inpaint import Inpaint
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.model import Model
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel

QUARTERS = torch.arange(16).view(4, 4)


def bound(conditioner: Any, space: Any) -> Any:
    conditioner.bind(space)
    return conditioner.eval()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return 2 * Noise([seed]).uniform((1, 3, height, width), "picture")[0].float() - 1


def enlarged(numbers: Tensor, times: int) -> Tensor:
    return numbers.repeat_interleave(times, -2).repeat_interleave(times, -1)


# ---- the rule ----


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_nearest_pixel_is_the_inverse_of_repeating_it(times: int) -> None:
    large = enlarged(QUARTERS, times)
    assert torch.equal(fitted(QUARTERS, (4 * times, 4 * times), "nearest", "map"), large)
    assert torch.equal(fitted(large, (4, 4), "nearest", "map"), QUARTERS)


def test_smooth_is_antialiased_and_keeps_a_ramp() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(3, 32, 64)
    half = fitted(ramp, (16, 32), "bicubic", "map")
    # In the middle, where no edge is near, halves of a ramp lie between its pixels.
    torch.testing.assert_close(half[:, :, 4:-4], (ramp[:, ::2, ::2] + ramp[:, ::2, 1::2])[:, :, 4:-4] / 2)
    stripes = torch.tensor([1.0, -1.0]).repeat(32).expand(3, 32, 64)
    assert fitted(stripes, (8, 16), "bicubic", "map").abs().max() < 0.2


def test_what_lacks_less_than_a_step_is_continued() -> None:
    grown = fitted(QUARTERS, (4, 6), "nearest", "map", step=4)
    assert torch.equal(grown[:, :4], QUARTERS)
    assert torch.equal(grown[:, 4:], QUARTERS[:, 3:].expand(4, 2))
    with pytest.raises(InvalidInput, match="a map of 4 x 4 for a picture of 8 x 4"):
        fitted(QUARTERS, (4, 8), "nearest", "map", step=4)


@pytest.mark.parametrize("how", ["nearest", "bicubic", "later"])
@pytest.mark.parametrize("size", [(4, 5), (12, 8), (40, 30)])
def test_another_shape_is_refused_and_both_sizes_are_named(how: Any, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        fitted(QUARTERS.float(), size, how, "depth")
    assert str(caught.value) == (
        f"depth: a map of 4 x 4 for a picture of {size[1]} x {size[0]} "
        "(cut one of them to the shape of the other)"
    )


# ---- of each conditioner ----


def test_depth_goes_to_the_places_of_x_in_one_step(latent: Latent) -> None:
    """As diffusers does it: no second resampling by way of the picture's size."""
    given = Noise([3]).uniform((1, 1, 24, 24), "depth").float()
    told = bound(Depth(), latent)(1, depth=given[0], size=[(16, 16)]).channels
    small = F.interpolate(given, (8, 8), mode="bicubic")
    low, high = small.amin(), small.amax()
    torch.testing.assert_close(told, 2 * (small - low) / (high - low) - 1)


@pytest.mark.parametrize("channels", [0, 3])
def test_a_map_of_classes_stays_one(latent: Latent, channels: int) -> None:
    conditioner = bound(SemanticMap(16, channels), latent)
    whole = conditioner(1, semantic_map=enlarged(QUARTERS, 4)).channels
    for times in (1, 2, 8):
        given = enlarged(QUARTERS, times)
        assert torch.equal(conditioner(1, semantic_map=given, size=[(16, 16)]).channels, whole)
    both = conditioner(2, semantic_map=[enlarged(QUARTERS, 2), QUARTERS], size=[(16, 16)] * 2).channels
    assert torch.equal(both, whole.expand_as(both))


@pytest.mark.parametrize("style", ["sd", "ldm", "pixel"])
def test_a_picture_with_a_hole_and_its_mask(latent: Latent, style: Any) -> None:
    conditioner = bound(MaskedImage(style), Pixel(multiple=2) if style == "pixel" else latent)
    large, hole = picture(32, 32), (QUARTERS % 3 == 0).float()[None]
    small = F.interpolate(large[None], (16, 16), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    expected = conditioner(1, image=small, mask=enlarged(hole, 4)).channels
    told = conditioner(1, image=large, mask=enlarged(hole, 2), size=[(16, 16)]).channels
    torch.testing.assert_close(told, expected)
    # A mask of the picture's shape needs no size to be told.
    assert torch.equal(conditioner(1, image=small, mask=hole).channels, expected)


def test_a_picture_to_be_turned_into_another(latent: Latent) -> None:
    large = picture(24, 48)
    small = F.interpolate(large[None], (8, 16), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    conditioner = bound(Image(), latent)
    told = conditioner(1, image=large, size=[(8, 16)]).channels
    torch.testing.assert_close(told, conditioner(1, image=small).channels)


def test_an_edits_mask_is_resized_to_its_picture() -> None:
    hole = PILImage.new("L", (8, 8))
    hole.paste(255, (2, 2, 6, 6))
    canvas = Inpaint(to_image(picture(16, 16)), hole).canvas(3, None)
    assert canvas.change is not None
    inside = torch.zeros(1, 1, 16, 16)
    inside[..., 4:12, 4:12] = 1
    assert torch.equal(canvas.change, inside)


# ---- in a model ----


def test_a_picture_is_as_large_as_the_map_where_nobody_asks(
    latent: Latent, model_of: Callable[..., Model], tmp_path: Path
) -> None:
    labels = ClassLabel({"label": ["cat", "dog"]})
    model = model_of(Together((labels, Depth())), 1, latent, classes=2)
    said: dict[str, Any] = {"label": "cat", "seed": 3, "guidance": []}
    deep = Noise([5]).uniform((1, 1, 24, 40), "depth")[0, 0].float()
    own = generate(model, depth=deep, **said)
    assert own.images[0].size == (40, 24)
    assert own.recipe["size"] == [24, 40]
    assert torch.equal(generate(model, depth=deep, size=(24, 40), **said).tensor, own.tensor)
    # Sides that the model does not take are rounded up, and the map is continued.
    odd = generate(model, depth=deep[:22, :39], **said)
    assert odd.images[0].size == (40, 24)
    assert torch.equal(generate(model, depth=deep[:22, :39], size=(24, 40), **said).tensor, odd.tensor)
    assert generate(model, depth=deep, size=(12, 20), **said).images[0].size == (20, 12)
    with pytest.raises(InvalidInput, match="depth: a map of 40 x 24 for a picture of 16 x 16"):
        generate(model, depth=deep, size=16, **said)
    plain = model_of(labels, 0, latent, classes=2)
    assert generate(plain, **said).images[0].size == (16, 16)


def test_maps_beside_an_edit_lie_where_its_picture_does(
    latent: Latent, model_of: Callable[..., Model]
) -> None:
    """An odd picture is continued to sides the space takes; a map of its size is, in the same way."""
    model = model_of(Depth(), 1, latent)
    deep, image = Noise([5]).uniform((1, 1, 18, 14), "depth")[0, 0].float(), picture(18, 14)
    odd = generate(model, depth=deep, seed=3, edit=ImageToImage(image, 1.0), guidance=[])
    assert odd.images[0].size == (14, 18)
    rows, columns = torch.arange(20).clamp(max=17), torch.arange(16).clamp(max=13)
    whole = {"depth": deep[rows][:, columns], "edit": ImageToImage(image[:, rows][:, :, columns], 1.0)}
    even = generate(model, seed=3, guidance=[], **whole)
    assert torch.equal(even.tensor[:, :, :18, :14], odd.tensor)


def test_all_that_heed_a_size_are_told_the_same(latent: Latent) -> None:
    both = Together((Sizes((8, 8), 4), bound(Depth(), latent)))
    assert both.inputs.count("size") == 1
    deep = Noise([5]).uniform((1, 1, 8, 8), "depth")[0, 0].float()
    told = both(2, depth=deep, size=[(16, 16)] * 2)
    assert torch.equal(told.vector, Sizes((16, 16), 4)(2).vector)  # type: ignore[arg-type]
    assert told.channels is not None
    assert told.channels.shape == (2, 1, 8, 8)
    assert both.size_of(depth=[deep]) == (8, 8)
    assert both.size_of(crop=[(1, 1)]) is None
    with pytest.raises(InvalidInput, match="2 sizes at once"):
        bound(Depth(), latent)(2, depth=deep, size=[(16, 16), (8, 8)])


def test_a_small_picture_is_made_as_much_larger_as_its_model_makes_it(
    latent: Latent, model_of: Callable[..., Model]
) -> None:
    """Of latents of half the side a picture of twice the size; asked for more, the small one is stretched."""
    model = model_of(NoisyLowRes(levels=0, level=0), 3, latent)
    small, said = picture(8, 12), {"seed": 3, "guidance": []}
    assert generate(model, low_res=small, **said).images[0].size == (24, 16)
    large = generate(model, low_res=small, size=(32, 48), **said)
    stretched = F.interpolate(small[None], (16, 24), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    seed = model.conditioner._seed(small, None)
    again = generate(model, low_res=stretched, noise_seed=seed, size=(32, 48), **said)
    assert torch.equal(large.tensor, again.tensor)
    with pytest.raises(InvalidInput, match="low_res: a map of 12 x 8 for a picture of 8 x 8"):
        generate(model, low_res=small, size=16, **said)


def test_an_augmented_conditioner_tells_the_same_of_its_inputs(latent: Latent) -> None:
    inner = bound(Depth(), latent)
    outer = Augmented(inner)
    assert (outer.kept, outer.pictures) == (inner.kept, inner.pictures)
    assert outer.size_of(depth=torch.zeros(8, 16)) == (8, 16)
    assert not hasattr(outer, "lists")
    assert not hasattr(Augmented(), "kept")
