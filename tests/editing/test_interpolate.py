"""Interpolation: exact at the stations, as large as noise between them, and smooth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from prompted_recipes import prompted
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.editing.interpolate import NoiseBetween, interpolate, mixed, slerp
from sfumato.editing.invert import invert
from sfumato.generation.generate import generate
from sfumato.model import Model

SAID: dict[str, Any] = {"steps": 6, "style": "noto"}


# ---- the great circle ----


def test_the_ends_are_exact_and_norms_go_straight() -> None:
    a, b = Noise(range(5)).randn((5, 3, 8, 8), "a"), 2 * Noise(range(5)).randn((5, 3, 8, 8), "b")
    assert torch.equal(slerp(a, b, torch.zeros(5)), a)
    assert torch.equal(slerp(a, b, torch.ones(5)), b)
    for f in (0.1, 0.5, 0.8):
        x = slerp(a, b, torch.full((5,), f))
        norms = [each.flatten(1).norm(dim=1) for each in (x, a, b)]
        torch.testing.assert_close(norms[0], (1 - f) * norms[1] + f * norms[2], rtol=1e-6, atol=0)


def test_angles_go_straight_too() -> None:
    """In the plane: from 0 to 1.2 radians, and the row's own share of it."""
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    b = torch.tensor([[math.cos(1.2), math.sin(1.2)]], dtype=torch.float64).expand(3, 2)
    x = slerp(a, b, torch.tensor([0.25, 0.5, 0.9]))
    torch.testing.assert_close(torch.atan2(x[:, 1], x[:, 0]), 1.2 * torch.tensor([0.25, 0.5, 0.9]).double())


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-7])
def test_what_is_almost_the_same_stays_so(apart: float) -> None:
    a = Noise([1]).randn((1, 64), "a").double()
    x = slerp(a, a + apart, torch.tensor([0.3]))
    torch.testing.assert_close(x, a + 0.3 * apart, rtol=0, atol=1e-14)


def test_numbers_between_two_seeds_are_normal() -> None:
    """At any share, of one seed twice that seed's own, and those of each row alone."""
    first, second = Noise([1, 2, 3]), Noise([4, 5, 3])
    share = torch.tensor([0.5, 0.25, 0.7], dtype=torch.float64)
    drawn = NoiseBetween(first, second, share).randn((3, 20_000), "step", 0.4)
    assert drawn.std(1).tolist() == pytest.approx([1, 1, 1], abs=0.02)
    assert drawn.mean(1).tolist() == pytest.approx([0, 0, 0], abs=0.03)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.15)
    assert torch.equal(drawn[2], Noise([3]).randn((1, 20_000), "step", 0.4)[0])
    one = NoiseBetween(first, second, share)[1:2]
    assert torch.equal(one.randn((1, 20_000), "step", 0.4)[0], drawn[1])


# ---- what is told ----


def told(tokens: Tensor, real: list[list[int]] | None = None, vector: float = 0.0) -> Condition:
    mask = None if real is None else torch.tensor(real, dtype=torch.bool)
    return Condition(vector=torch.full((len(tokens), 2), vector), tokens=tokens, mask=mask)


def test_texts_of_unlike_length() -> None:
    """A token that one lacks fades in from zero, and is masked at the end that lacks it."""
    a = told(torch.ones(3, 3, 2), [[1, 1, 0]] * 3, vector=1.0)
    b = told(3 * torch.ones(3, 3, 2), [[1, 1, 1]] * 3, vector=5.0)
    made = mixed(a, b, torch.tensor([0.0, 0.25, 1.0]))
    assert made.mask is not None
    assert made.tokens is not None
    assert made.mask.tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    assert made.tokens[1, :, 0].tolist() == [1.5, 1.5, 0.75]
    assert torch.equal(made.tokens[0, :2], a.tokens[0, :2])  # type: ignore[index]
    assert torch.equal(made.tokens[2], b.tokens[2])  # type: ignore[index]
    assert made.vector is not None
    assert made.vector[:, 0].tolist() == [1.0, 2.0, 5.0]


# ---- strips ----


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver_pp"])
@pytest.mark.parametrize("path", [None, "ve"])
def test_at_the_stations_pictures_are_those_of_generate(tiny: Model, sampler: str, path: str | None) -> None:
    """Three of them, of seeds and words, walked under guidance."""
    between = {"seed": [1, 20, 7], "concept": ["cat", "lemon", "red apple"]}
    made = interpolate(tiny, between, count=5, sampler=sampler, path=path, **SAID)
    assert len(made) == 5
    for place, (seed, concept) in zip((0, 2, 4), zip(*between.values(), strict=True), strict=True):
        own = generate(tiny, seed=seed, concept=concept, sampler=sampler, path=path, **SAID)
        torch.testing.assert_close(made.tensor[place], own.tensor[0], rtol=0, atol=1e-5)
    assert made.seeds == (1, 1, 20, 20, 7)
    assert "edit" in made.recipe["unrecorded"]


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_a_strip_is_smooth_and_does_not_depend_on_its_batches(tiny: Model, sampler: str) -> None:
    between = {"seed": [1, 2], "concept": ["cat", "lemon"], "style": ["noto", None]}
    made = interpolate(tiny, between, count=17, steps=6, sampler=sampler).tensor
    whole = float((made[0] - made[-1]).square().mean().sqrt())
    moves = (made[1:] - made[:-1]).square().flatten(1).mean(1).sqrt()
    assert float(moves.max()) < 0.25 * whole
    apart = interpolate(tiny, between, count=17, steps=6, sampler=sampler, batch=2).tensor
    torch.testing.assert_close(apart, made, rtol=0, atol=1e-5)


def test_words_alone_and_what_is_steered_away_from(tiny: Model) -> None:
    settings: dict[str, Any] = {**SAID, "negative": {"concept": "lemon"}, "guidance": 4.0, "seed": 5}
    made = interpolate(tiny, {"concept": ["cat", "red apple"]}, count=3, **settings).tensor
    for place, concept in ((0, "cat"), (2, "red apple")):
        own = generate(tiny, concept=concept, **settings).tensor[0]
        torch.testing.assert_close(made[place], own, rtol=0, atol=1e-5)


def test_prompts_of_unlike_length() -> None:
    """Padded and masked beside each other, each is at its end what it is alone, guided, with a negative."""
    model = prompted()
    settings: dict[str, Any] = {"seed": 3, "steps": 4, "guidance": 3.0, "negative": {"prompt": "the lemon"}}
    made = interpolate(model, {"prompt": ["cat", "a red dog on the mat"]}, count=3, **settings).tensor
    for place, prompt in ((0, "cat"), (2, "a red dog on the mat")):
        own = generate(model, prompt=prompt, **settings).tensor[0]
        torch.testing.assert_close(made[place], own, rtol=0, atol=1e-4)
    assert float((made[1] - made[0]).abs().max()) > 1e-3


def test_between_pictures(tiny: Model) -> None:
    """Of odd sides; at the ends they are made again, and an inversion that is given is taken as it is."""
    given = list(2 * Noise([1, 2]).uniform((2, 3, 19, 22), "picture").float() - 1)
    said: dict[str, Any] = {"concept": ["cat", "lemon"]}
    found = invert(tiny, given, steps=12, times="karras", method="exact", style="noto", **said)
    made = interpolate(tiny, {"image": [found[:1], found[1:]], **said}, count=5, style="noto").tensor
    assert made.shape == (5, 3, 19, 22)
    for place, row in ((0, 0), (4, 1)):
        assert float((made[place] - given[row]).abs().max()) < 0.02
        torch.testing.assert_close(made[place], found.make().tensor[row], rtol=0, atol=1e-4)
    own = invert(tiny, given, steps=12, times="karras", style="noto", **said).make().tensor
    plain = interpolate(
        tiny, {"image": given, **said}, count=2, steps=12, times="karras", style="noto"
    ).tensor
    torch.testing.assert_close(plain, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("between", "count", "match"),
    [
        ({}, 4, "lists of one length"),
        ({"seed": [1]}, 4, "two or more"),
        ({"seed": [1, 2], "concept": ["cat"]}, 4, "lists of one length"),
        ({"seed": [1, 2]}, 1, "count: 1 is not two or more"),
        ({"seed": [1, 2], "image": [torch.zeros(3, 8, 8)] * 2}, 4, "noise of their own"),
        ({"concept": ["cat", "dog"]}, 4, "unknown concept"),
        ({"sed": [1, 2]}, 4, "heeds no such input"),
    ],
    ids=str,
)
def test_strips_that_are_none(tiny: Model, between: dict[str, Any], count: int, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        interpolate(tiny, between, count, **SAID)
