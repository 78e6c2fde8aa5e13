"""Semantic maps: mixed as latent diffusion does it, read from the numbers of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.semantic_map import SemanticMap
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build, describe
from sfumato.spaces.latent import Latent
from sfumato.spaces.pixel import Pixel


class Quarter:
    """A space of a quarter of the size."""

    image_channels = 3

    @staticmethod
    def shape(height: int, width: int) -> tuple[int, int, int]:
        return 3, height // 4, width // 4


def labels(seed: int = 0, classes: int = 5) -> Tensor:
    return torch.randint(0, classes, (16, 16), generator=torch.Generator().manual_seed(seed))


def bound(space: Any, *settings: int) -> SemanticMap:
    torch.manual_seed(1)
    conditioner = SemanticMap(*settings)
    conditioner.bind(space)
    return conditioner


def test_mixed_as_the_spatial_rescaler() -> None:
    """One-hot, halved bilinearly twice, then a convolution of one place: the published order."""
    conditioner = bound(Quarter(), 5, 3)
    assert conditioner.channel_mapper is not None
    numbers = labels()
    numbers[3:6, 2:9] = 255
    one_hot = F.one_hot(numbers.clamp(max=5), 6)[..., :5].movedim(-1, 0)[None].float()
    for _ in range(2):
        one_hot = F.interpolate(one_hot, scale_factor=0.5, mode="bilinear")
    expected = conditioner.channel_mapper(one_hot)
    told = conditioner(2, semantic_map=numbers).channels
    torch.testing.assert_close(told, expected.expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    told.square().sum().backward()  # type: ignore[union-attr]
    mine = conditioner.channel_mapper.weight.grad.clone()
    conditioner.channel_mapper.weight.grad = None
    (2 * expected.square().sum()).backward()
    torch.testing.assert_close(mine, conditioner.channel_mapper.weight.grad, rtol=1e-5, atol=1e-5)


def test_unmixed_is_one_hot_of_the_nearest(latent: Latent) -> None:
    numbers = labels()
    numbers[0, 0] = 255
    told = bound(latent, 5, 0)(1, semantic_map=numbers).channels
    assert told is not None
    assert told.shape == (1, 5, 8, 8)
    assert not told[0, :, 0, 0].any()
    assert torch.equal(told[0].argmax(0)[1:], numbers[::2, ::2][1:])
    assert torch.equal(told[0, :, 1:].sum(0), torch.ones(7, 8))


def test_numbers_of_files_palettes_and_tensors_are_one_map(tmp_path: Path) -> None:
    numbers, conditioner = labels(), bound(Pixel(multiple=2), 5, 0)
    expected = conditioner(1, semantic_map=numbers).channels
    grey = Image.frombytes("L", (16, 16), numbers.byte().numpy().tobytes())
    colored = Image.frombytes("P", (16, 16), numbers.byte().numpy().tobytes())
    # Colours in no order, so that reading colours in place of numbers is found out.
    colored.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 0, 5, 250, 5, 1, 2, 3])
    grey.save(tmp_path / "grey.png")
    colored.save(tmp_path / "colored.png", bits=8)
    for given in (tmp_path / "grey.png", str(tmp_path / "colored.png"), grey, colored, numbers[None].int()):
        assert torch.equal(conditioner(1, semantic_map=given).channels, expected)  # type: ignore[arg-type]


def test_no_map_and_the_null_are_zeros() -> None:
    for settings in ((5, 0), (5, 3)):
        conditioner = bound(Pixel(multiple=2), *settings)
        told = conditioner(2, semantic_map=[labels(), None])
        null = conditioner.null(told)
        assert told.channels is not None
        assert not told.channels[1].any()
        assert not null.channels.any()  # type: ignore[union-attr]
        dropped = told.where(torch.tensor([False, True]), null).channels
        assert not dropped.any()  # type: ignore[union-attr]
        with pytest.raises(InvalidInput, match="was given none"):
            conditioner(1)


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    conditioner = bound(Pixel(multiple=2), 5, 0)
    Image.new("L", (16, 16)).save(tmp_path / "lossy.jpg")
    for given, said in (
        (labels() + 1, "class 5 of a model of 5"),
        (-labels() - 1, "class -"),
        (labels().float(), "a tensor"),
        (torch.zeros(2, 16, 16, dtype=torch.long), "a tensor"),
        (Image.new("RGB", (16, 16)), "mode RGB"),
        (tmp_path / "lossy.jpg", "holds no class numbers"),
        (3, "int is no map"),
    ):
        with pytest.raises(InvalidInput, match=said):
            conditioner.check(semantic_map=given)
    with pytest.raises(InvalidInput, match="not a multiple"):
        conditioner(1, semantic_map=labels()[:15])
    for settings in ((0, 3), (5, -1), (256, 3)):
        with pytest.raises(InvalidInput, match="semantic_map"):
            SemanticMap(*settings)
    settings_ = describe(SemanticMap(5, 0, 9))
    assert describe(build("conditioner", settings_)) == settings_


@pytest.mark.parametrize("channels", [0, 3])
def test_a_model_generates_by_map_and_class(
    channels: int, latent: Latent, model_of: Callable[..., Model]
) -> None:
    named = ClassLabel({"label": ["cat", "dog"]})
    model = model_of(Together((named, bound(latent, 5, channels))), channels or 5, latent, classes=2)
    said: dict[str, Any] = {"label": "cat", "guidance": 2.0, "seed": 3}
    one = generate(model, semantic_map=labels(1), **said).tensor
    assert (generate(model, semantic_map=labels(2), **said).tensor - one).abs().max() > 1e-3
    negative = generate(model, semantic_map=labels(1), **said, negative={"label": "dog"}).tensor
    assert (negative - one).abs().max() > 1e-3
