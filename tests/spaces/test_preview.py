"""Previews of latents: a linear map, which least squares finds where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.posterior import Posterior
from sfumato.registry import describe
from sfumato.spaces.latent import PREVIEWS, Latent, fit_preview


@dataclass(eq=False)
class Linear(nn.Module):
    """Latents whose places are a linear map of the mean colour of 4 x 4 pixels."""

    channels: int = 3
    factor: int = 4
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__init__()
        self.register_buffer("map", torch.tensor([[1.0, 0.5, 0], [0, 2.0, 0.1], [0.3, 0, -1.0]]))

    def encode(self, image: Tensor) -> Posterior:
        small = F.avg_pool2d(image, 4)
        return Posterior(torch.einsum("bc...,cd->bd...", small, self.map), None)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(torch.einsum("bc...,cd->bd...", z, self.map.inverse()), scale_factor=4)


def test_fitting_finds_the_map_and_its_preview_is_the_picture_made_small() -> None:
    space = Latent(Linear(), scale=0.7, shift=0.2)
    images = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    rows = fit_preview(space, images.split(2))
    found = Latent(Linear(), scale=0.7, shift=0.2, preview_map=rows)
    small = F.avg_pool2d(images, 4)
    torch.testing.assert_close(found.preview(found.encode(images)), small, atol=1e-3, rtol=0)
    expected = torch.linalg.inv(Linear().map) / 0.7
    torch.testing.assert_close(torch.tensor(rows[:3]), expected, atol=1e-3, rtol=0)
    assert describe(found)["preview_map"] == [list(row) for row in rows]
    with pytest.raises(InvalidInput, match="nothing to fit"):
        fit_preview(space, [])
    with pytest.raises(InvalidInput, match=r"latent\.preview_map: 2 rows"):
        Latent(Linear(), preview_map=rows[:2])


def test_without_a_map_one_is_fitted_to_the_decoder_once() -> None:
    space = Latent(Linear(), scale=4.0)
    x = space.encode(torch.full((1, 3, 16, 16), 0.1))
    seen = space.preview(x)
    assert space.preview_map
    # The decoder's pictures are clamped, which bends the map a little.
    assert (seen - 0.1).abs().max() < 0.1


def test_published_maps_are_those_of_stable_diffusion() -> None:
    space = Latent(channels=4, scale=0.18215)
    x = torch.zeros(1, 4, 2, 2)
    x[:, 1] = 1
    torch.testing.assert_close(space.preview(x)[0, :, 0, 0], torch.tensor([0.3250, 0.4974, 0.2350]))
    assert {key: len(rows) for key, rows in PREVIEWS.items()} == {(4, 0.18215): 5, (4, 0.13025): 5}
