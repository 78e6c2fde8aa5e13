"""ClipImage: every layer of the reference implementation, and pictures as it wants them."""

from __future__ import annotations

import pytest
import torch
from clip_recipes import IMAGE, error, image_pair

from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip_image import DEVIATION, MEAN, ClipImage


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_all_layers_are_those_of_transformers(activation: str) -> None:
    theirs, ours = image_pair(activation)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    told = theirs(x, output_hidden_states=True)
    states = ours.hidden_states(x)
    assert len(states) == len(told.hidden_states)
    for mine, other in zip(states, told.hidden_states, strict=True):
        assert error(mine, other) < 1e-5
    assert error(ours(x).states, told.last_hidden_state) < 1e-5
    assert error(ours(x).pooled, told.image_embeds) < 1e-5


def test_pictures_are_brought_to_size_and_colour() -> None:
    """As the reference prepares them, within what rounding to 256 levels and another filter leave."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    grid = torch.linspace(0, 1, 60)
    smooth = torch.stack([grid[:40, None] * grid, grid[:40, None].expand(40, 60), 1 - grid.expand(40, 60)])
    eight = (smooth * 255).round().to(torch.uint8)
    tower = ClipImage(**IMAGE)
    mine = tower.prepare(eight[None].float() / 127.5 - 1)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    picture = Image.fromarray(eight.permute(1, 2, 0).numpy())
    other = processor(picture, return_tensors="pt")["pixel_values"]
    assert mine.shape == other.shape == (1, 3, 16, 16)
    assert float((mine - other).abs().max()) < 0.03


def test_a_picture_of_the_size_is_only_coloured_and_gradients_pass() -> None:
    tower = ClipImage(**IMAGE)
    x = (torch.rand(2, 3, 16, 16) * 2 - 1).requires_grad_()
    prepared = tower.prepare(x)
    mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
    assert torch.allclose(prepared * deviation + mean, (x + 1) / 2, atol=1e-6)
    tower(tower.prepare(torch.nn.functional.interpolate(x, (20, 24)))).pooled.sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())


def test_published_counts() -> None:
    """Those of the towers of OpenAI's ViT-B/32 and ViT-L/14, by the sizes of their layers."""
    for name, count in [("clip_b32", 87_849_216), ("clip_l14", 303_966_208)]:
        with torch.device("meta"):
            assert sum(p.numel() for p in ClipImage.published(name).parameters()) == count


def test_what_cannot_be_is_refused() -> None:
    tower = ClipImage(**IMAGE)
    with pytest.raises(InvalidInput, match="prepare"):
        tower(torch.zeros(1, 3, 20, 16))
    with pytest.raises(InvalidInput, match="patches of 5"):
        ClipImage(**{**IMAGE, "patch": 5})
