"""Attention maps: a network whose words move known pixels, and pictures that are as without looking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_recipes import normal
from prompted_recipes import prompted, small
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site, name_sites
from sfumato.core.prediction import Velocity
from sfumato.editing.attention_maps import maps
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.generation.generate import generate
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.windows import Windows
from sfumato.model import Model
from sfumato.networks.layers.attention import attend
from sfumato.processes.flow import Flow
from sfumato.spaces.pixel import Pixel


class Halves(nn.Module):
    """The left half attends to the first word, the right half to the second; at two sizes of map.

    With the probabilities e^s / (e^s + 3) for the one word and 1 / (e^s + 3) for each other token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites = nn.ModuleList([nn.Module(), nn.Module()])
        for each in self.sites:
            each.site = Site("", "cross")
        self.scale = nn.Parameter(torch.zeros(()))
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        k = torch.zeros(len(x), 1, condition.tokens.shape[1], 2)
        k[:, :, 1, 0] = k[:, :, 2, 1] = 1
        total = torch.zeros_like(x)
        mask = None if condition.mask is None else condition.mask[:, None, None, :]
        for each, side in zip(self.sites, (8, 4), strict=True):
            left = (torch.arange(side) < side // 2).float().repeat(side)
            q = torch.stack((left, 1 - left), dim=1)[None, None].expand(len(x), -1, -1, -1) * 2 * 2**0.5
            context = Context(time[:, None], condition)
            out = attend(each.site, context, q, k, k, mask)[:, 0, :, :1]  # type: ignore[arg-type]
            total = total + F.interpolate(out.transpose(1, 2).unflatten(2, (side, side)), (8, 8)) * self.scale
        return total


def halves() -> Model:
    denoiser = NetworkDenoiser(Halves(), Flow(), Velocity(), "thousand").eval()
    card = {"size": [16, 16], "steps": 3, "sampler": "euler", "times": "uniform", "guidance": []}

    class Twice(Pixel):
        """Pictures of two pixels a place."""

        def encode(self, image: Tensor, noise: Any = None) -> Tensor:
            return F.avg_pool2d(image, 2)

        def decode(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2).clamp(-1, 1)

        def shape(self, height: int, width: int) -> tuple[int, ...]:
            return 3, height // 2, width // 2

    return Model(denoiser, small().eval(), Twice(), card)


@pytest.mark.parametrize("guidance", [[], [ClassifierFree(3.0)]], ids=["plain", "guided"])
def test_heat_is_where_and_how_much_a_word_is_attended_to(guidance: Any) -> None:
    found = maps(halves(), prompt=["red cat", "cat red"], seeds=[1, 2], guidance=guidance)
    high, low = (torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 3), 1 / (torch.tensor(2.0).exp() + 3))
    for row, words in enumerate((("red", "cat"), ("cat", "red"))):
        first, second = (found.heat(word, row) for word in words)
        assert first.shape == (16, 16)
        # Three evaluations; the smaller map is left out. Away from the middle resizing changes nothing.
        torch.testing.assert_close(first[:, :5], torch.full((16, 5), 3 * float(high)))
        torch.testing.assert_close(first[:, 11:], torch.full((16, 5), 3 * float(low)))
        torch.testing.assert_close(second, first.flip(1), rtol=1e-4, atol=1e-5)
        mask = found.mask(words[0], 0.5, row)
        assert mask[:, :8].all()
        assert not mask[:, 8:].any()
        # Both words at once: the mean over their tokens.
        both = found.heat(" ".join(words), row)
        torch.testing.assert_close(both, (first + second) / 2, rtol=1e-4, atol=1e-5)
        assert found.overlay(words[0], row=row).size == (16, 16)
    # Bare heat, black picture: blue where it is least, yellow where it is most.
    tint = found.overlay("cat", strength=1.0)
    assert tint.getpixel((1, 8))[2] > 128 > tint.getpixel((1, 8))[0]  # type: ignore[index]
    assert tint.getpixel((14, 8))[0] > 128 > tint.getpixel((14, 8))[2]  # type: ignore[index, operator]


@pytest.mark.parametrize("name", ["sd_unet", "dit", "adm"])
def test_pictures_and_recipes_are_those_made_without_looking(name: str) -> None:
    model = prompted(name)
    asked: dict[str, Any] = {
        "prompt": ["a red cat", "a dog"],
        "seeds": [1, 2],
        "guidance": [ClassifierFree(2.0)],
    }
    found, plain = maps(model, **asked), generate(model, **asked)
    assert torch.equal(found.images.tensor, plain.tensor)
    assert found.images.recipes == plain.recipes
    assert found.heat("cat").max() > 0
    assert not torch.equal(found.heat("a", 0), found.heat("a", 1))


def test_of_a_prompt_to_prompt_edit_the_words_are_where_the_source_s_are() -> None:
    """While attention to words is the source's, the maps of a word replaced are those of the word before."""
    asked: dict[str, Any] = {"prompt": ["a red cat", "a red dog"], "seeds": [1, 1]}
    edit = PromptToPrompt(cross=1.0, self_attention=0.0)
    found = maps(prompted(), **asked, edit=edit)
    torch.testing.assert_close(found.heat("cat", 0), found.heat("dog", 1))
    apart = maps(prompted(), **asked)
    assert (apart.heat("cat", 0) - apart.heat("dog", 1)).abs().max() > 1e-3
    assert found.images.recipe["unrecorded"] == ["edit"]


def test_what_has_no_maps(tiny: Model) -> None:
    found = maps(prompted(), prompt="a cat", seed=1, steps=1)
    with pytest.raises(InvalidInput, match="'dog' does not stand in 'a cat'"):
        found.heat("dog")
    with pytest.raises(InvalidInput, match="row"):
        found.heat("cat", 1)
    with pytest.raises(InvalidInput, match="attends to no prompt"):
        maps(tiny, concept="cat")
    with pytest.raises(InvalidInput, match="windows"):
        maps(prompted(), prompt="a cat", guidance=[Windows(4, 2)])
    with pytest.raises(InvalidInput, match="made, not given"):
        maps(prompted(), prompt="a cat", edit=ImageToImage(normal(3, 8, 8).clamp(-1, 1)))
