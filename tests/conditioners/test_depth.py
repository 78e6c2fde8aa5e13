"""Depth: spread as Stable Diffusion 2 is told it, of any unit and file, and kept."""

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
from sfumato.conditioners.depth import Depth
from sfumato.conditioners.together import Together
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.registry import build, describe
from sfumato.spaces.latent import Latent


def depth(seed: int = 0) -> Tensor:
    """(16, 16) of some unit."""
    return 40 * Noise([seed]).uniform((1, 16, 16), "depth")[0].float() + 3


@pytest.fixture
def bound(latent: Latent) -> Depth:
    conditioner = Depth()
    conditioner.bind(latent)
    return conditioner


def test_resized_then_spread_map_by_map(bound: Depth) -> None:
    """diffusers: bicubic to the latents' size, then 2 (d - min) / (max - min) - 1 of each."""
    maps = [depth(1), depth(2)]
    told = bound(2, depth=maps).channels
    small = F.interpolate(torch.stack(maps)[:, None], size=(8, 8), mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(told, 2 * (small - low) / (high - low) - 1, rtol=0, atol=1e-6)
    assert torch.equal(told[1:], bound(1, depth=maps[1]).channels)


def test_the_unit_is_no_matter_and_a_flat_map_is_zeros(bound: Depth) -> None:
    one = bound(1, depth=depth()).channels
    torch.testing.assert_close(bound(1, depth=5 * depth()[None] - 70).channels, one, rtol=0, atol=1e-5)
    assert torch.equal(bound(1, depth=torch.full((16, 16), 3.3)).channels, torch.zeros(1, 1, 8, 8))


def test_sixteen_bits_of_a_file_are_all_told(tmp_path: Path, bound: Depth) -> None:
    """Depths that differ by less than eight bits tell apart."""
    levels = (32768 + torch.arange(256).view(16, 16)).int()
    image = Image.frombytes("I", (16, 16), levels.numpy().tobytes())
    image.convert("I;16").save(tmp_path / "deep.png")
    expected = bound(1, depth=levels.float()).channels
    for given in (tmp_path / "deep.png", str(tmp_path / "deep.png"), image):
        torch.testing.assert_close(bound(1, depth=given).channels, expected, rtol=0, atol=1e-6)
    grey = Image.frombytes("L", (16, 16), bytes(range(256)))
    grey.save(tmp_path / "grey.png")
    for given in (tmp_path / "grey.png", grey):
        torch.testing.assert_close(bound(1, depth=given).channels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(2, 16, 16), "no map of finite numbers"),
        (torch.full((16, 16), float("nan")), "no map of finite numbers"),
        (torch.zeros(0, 16), "no map of finite numbers"),
        ("absent.png", "absent.png"),
        (7, "int is no picture"),
    ],
)
def test_what_is_no_depth_is_refused(given: Any, said: str, bound: Depth) -> None:
    for entrance in (bound.check, lambda **told: bound(1, **told)):
        with pytest.raises(InvalidInput, match=said):
            entrance(depth=given)


def test_it_is_kept_and_comes_back(bound: Depth) -> None:
    told = bound(2, depth=[depth(1), depth(2)])
    assert torch.equal(bound.null(told).channels, told.channels)  # type: ignore[arg-type]
    assert describe(build("conditioner", "depth")) == {"name": "depth"}
    with pytest.raises(InvalidInput, match="was given none"):
        bound(2)
    with pytest.raises(InvalidInput, match="not a multiple of 4"):
        bound(1, depth=torch.zeros(15, 16))


def test_a_model_generates_by_depth_and_class(latent: Latent, model_of: Callable[..., Model]) -> None:
    labels = ClassLabel({"label": ["cat", "dog"]})
    model = model_of(Together((labels, Depth())), 1, latent, classes=2)
    said: dict[str, Any] = {"label": "cat", "guidance": 2.0}
    one = generate(model, **said, seed=3, depth=depth(1)).tensor
    both = generate(model, **said, seeds=[9, 3], depth=[depth(2), depth(1)]).tensor
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-4)
    assert (generate(model, **said, seed=3, depth=depth(2)).tensor - one).abs().max() > 1e-3
    negative = generate(model, **said, seed=3, depth=depth(1), negative={"label": "dog"}).tensor
    assert (negative - one).abs().max() > 1e-3
    with pytest.raises(InvalidInput, match="a map of 16 x 16 for a picture of 24 x 16"):
        generate(model, **said, size=(16, 24), depth=depth(1))
