"""Regional prompts: each place is told its own, exactly, where places do not see each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import randomised
from prompted_recipes import prompted, small
from torch import Tensor, nn

import sfumato
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import Velocity
from sfumato.core.region import Region
from sfumato.editing.regional import Regional
from sfumato.generation.generate import generate
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.interfaces.recipe import save_png
from sfumato.interfaces.replay import replay
from sfumato.model import Model
from sfumato.processes.flow import Flow
from sfumato.spaces.pixel import Pixel

LEFT, RIGHT = Region((0, 0, 4, 8)), Region((4, 0, 8, 8))


class Pointwise(nn.Module):
    """Each place by itself: told the mean of the tokens, bent so that means do not add up."""

    def __init__(self) -> None:
        super().__init__()
        self.told, self.enter, self.leave = nn.Linear(16, 8), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        told = self.told(small().encoder.pool(condition.tokens, condition.mask))
        return self.leave(torch.tanh(self.enter(x) + 3 * told[:, :, None, None]))


def pointwise() -> Model:
    denoiser = NetworkDenoiser(randomised(Pointwise()), Flow(), Velocity(), "thousand").eval()
    card = {"size": [8, 8], "steps": 4, "sampler": "euler", "times": "uniform", "guidance": []}
    return Model(denoiser, small().eval(), Pixel(), card)


@pytest.mark.parametrize("guidance", [[], [ClassifierFree(3.0)]], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ancestral"])
def test_inside_of_a_region_it_is_as_of_that_prompt_alone(guidance: Any, sampler: str) -> None:
    model = pointwise()
    asked: dict[str, Any] = {"seeds": [3, 4], "guidance": guidance, "sampler": sampler}
    edit = Regional(("a red cat", "dog"), (Region((0, 0, 4, 8)), Region((4, 0, 8, 4))))
    made = generate(model, prompt="the mat", edit=edit, **asked).tensor
    base, cat, dog = (generate(model, prompt=p, **asked).tensor for p in ("the mat", "a red cat", "dog"))
    wanted = base.clone()
    wanted[..., :4] = cat[..., :4]
    wanted[..., :4, 4:] = dog[..., :4, 4:]
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert (cat - dog).abs().mean() > 0.01


def test_weights_sum_to_one_and_overlaps_are_shared() -> None:
    edit = Regional(("a", "b"), (Region((0, 0, 6, 8)), Region((2, 0, 8, 4), feather=1)), base=0.2)
    weights = edit.weights((8, 8), (8, 8))
    torch.testing.assert_close(weights.sum(0), torch.ones(1, 8, 8))
    assert weights[:, 0, 7, 0].tolist() == pytest.approx([0.2, 0.8, 0])
    assert weights[:, 0, 1, 4].tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert weights[:, 0, 7, 7].tolist() == [1, 0, 0]
    # Where a region's edge is soft: half of it is the base prompt's.
    assert weights[:, 0, 1, 2].tolist() == pytest.approx([0.2, 0.8 / 1.5, 0.4 / 1.5])
    coarse = edit.weights((8, 8), (4, 4))
    torch.testing.assert_close(coarse.sum(0), torch.ones(1, 4, 4))


def test_one_region_of_the_whole_picture_is_that_prompt_and_of_the_same_nothing() -> None:
    model = prompted()
    whole = Regional(("a dog",), (Region((0, 0, 8, 8)),))
    made = generate(model, prompt="a cat", seed=3, edit=whole).tensor
    torch.testing.assert_close(made, generate(model, prompt="a dog", seed=3).tensor, rtol=1e-4, atol=1e-4)
    same = Regional(("a cat", "a cat"), (LEFT, RIGHT))
    made = generate(model, prompt="a cat", seed=3, edit=same).tensor
    torch.testing.assert_close(made, generate(model, prompt="a cat", seed=3).tensor, rtol=1e-4, atol=1e-4)


def test_rows_of_memory_are_counted_and_recipes_replayed(tmp_path: Path) -> None:
    sfumato.save(prompted(), tmp_path / "m")
    model = sfumato.load(tmp_path / "m")
    edit = {
        "name": "regional",
        "prompts": ["a dog"],
        "regions": [{"box": [0, 0, 4, 8], "feather": 1}],
        "base": 0.1,
    }
    made = sfumato.generate(model, prompt="a cat", seed=3, edit=edit)
    assert replay(save_png(made.images[0], made.recipe, tmp_path / "out")).identical
    walks = [sfumato.plan(model, prompt="a cat", seed=3, size=32, edit=each).walk for each in (None, edit)]
    assert walks[1] > 1.5 * walks[0]


def test_masks_are_pictures(tmp_path: Path) -> None:
    from PIL import Image

    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (4, 0, 8, 8))
    mask.save(tmp_path / "mask.png")
    given: list[Any] = [RIGHT, Region(mask=str(tmp_path / "mask.png")), Region(mask=mask)]
    made = [
        generate(pointwise(), prompt="a cat", seed=3, edit=Regional(("a dog",), (region,)))
        for region in given
    ]
    assert torch.equal(made[0].tensor, made[1].tensor)
    assert torch.equal(made[0].tensor, made[2].tensor)
    assert made[1].recipe["unrecorded"] == ["edit.regions"]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: Regional(("a",), ()), "as many prompts"),
        (lambda: Regional("a", (LEFT,)), "as many prompts"),  # type: ignore[arg-type]
        (lambda: Regional(("a",), (LEFT,), 1.5), "1.5 is not from 0 to 1"),
        (lambda: generate(prompted(), prompt="a", edit=Regional()), "no regions"),
        (
            lambda: generate(prompted(), prompt="a", edit=Regional(("a",), (Region((8, 8, 9, 9)),))),
            "no pixel",
        ),
    ],
)
def test_what_cannot_be(wrong: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        wrong()


def test_models_without_text(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match="told no prompt"):
        generate(tiny, concept="cat", edit=Regional(("a",), (LEFT,)))
