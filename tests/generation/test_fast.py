"""Accelerations by name: in what is generated, its recipe, its plan, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sfumato
from sfumato.acceleration.block_cache import BlockCache
from sfumato.acceleration.token_merging import TokenMerging
from sfumato.core.acceleration import Acceleration
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.hooks import Hooks
from sfumato.core.level import Level
from sfumato.core.reverse import Plan
from sfumato.generation.plan import _left_over, levels_asked
from sfumato.generation.task import Task
from sfumato.interfaces.cli import main
from sfumato.interfaces.recipe import read_recipe
from sfumato.interfaces.replay import replay
from sfumato.model import Model

ASKED: dict[str, Any] = {"prompt": "a red cat", "seed": 3, "size": 8, "steps": 4, "guidance": 2.0}
CACHED = {"name": "block_cache", "every": 2}


@pytest.fixture
def model(text_unet: Callable[..., Model]) -> Model:
    return text_unet()


def made(model: Model, **more: Any) -> torch.Tensor:
    return sfumato.generate(model, **{**ASKED, **more}).tensor


def test_names_dictionaries_and_objects_are_one(model: Model) -> None:
    plain = made(model)
    merging = {"name": "token_merging", "ratio": 0.25}
    for ways in (("block_cache", [BlockCache()]), (merging, TokenMerging(0.25))):
        first, *others = (made(model, fast=way) for way in ways)
        assert not torch.equal(first, plain)
        assert all(torch.equal(first, other) for other in others)
    assert torch.equal(made(model, fast=[]), plain)
    both = made(model, fast=[CACHED, "token_merging"])
    assert not any(torch.equal(both, made(model, fast=each)) for each in (CACHED, "token_merging"))


def test_the_card_may_say_it_and_the_caller_may_not(model: Model) -> None:
    asked, plain = made(model, fast=CACHED), made(model)
    model.card["fast"] = [CACHED]
    assert torch.equal(made(model), asked)
    assert torch.equal(made(model, fast=[]), plain)


def test_a_picture_is_the_same_in_a_batch(model: Model) -> None:
    alone = made(model, fast=CACHED, seed=5)
    several = made(model, fast=CACHED, seed=3, count=4)
    torch.testing.assert_close(several[2:3], alone, rtol=0, atol=1e-4)


def test_the_recipe_makes_it_again(model: Model, tmp_path: Path) -> None:
    sfumato.save(model, tmp_path / "model")
    out = ["--out", str(tmp_path / "out"), "--seed", "3", "--steps", "4", "--size", "8"]
    said = "[{name: block_cache, every: 2}, token_merging]"
    assert main(["generate", str(tmp_path / "model"), "--prompt", "a cat", "--fast", said, *out]) == 0
    (path,) = (tmp_path / "out").glob("*.png")
    again = replay(path)
    assert again.identical
    assert again.data == path.read_bytes()
    assert read_recipe(path)["fast"] == [CACHED, {"name": "token_merging"}]


class Mine(Acceleration):
    """An acceleration of the caller's own, which does nothing."""

    def plan(self, network: nn.Module) -> Plan:
        def hooks(level: Level[float]) -> Hooks | None:
            return None

        return hooks


def test_one_of_the_callers_own_is_told_not_to_be_in_the_recipe(model: Model) -> None:
    images = sfumato.generate(model, **ASKED, fast=Mine())
    assert torch.equal(images.tensor, made(model))
    assert images.recipes[0]["unrecorded"] == ["fast"]


def test_the_plan_counts_what_is_left(model: Model) -> None:
    """Of every two estimates one is whole: half the arithmetic, and of the others the outer stages'."""
    rest = {"seeds": None, "count": 1, "sampler": "euler", "times": None, "path": None, "negative": None}
    asked = {key: value for key, value in ASKED.items() if key != "prompt"}
    found = []
    for every in (1, 2):
        task = Task.of(
            model,
            **{**rest, **asked},
            edit=None,
            load=None,
            inputs={"prompt": "a cat"},
            fast=BlockCache(every),
        )
        found.append(_left_over(task, levels_asked(task)))
    outer = 2 * found[1] - 1
    assert found[0] == 1
    assert 0 < outer < 0.5


def test_what_is_none_is_refused(model: Model, tiny: Model) -> None:
    with pytest.raises(NotFound, match="block_cache"):
        made(model, fast="block_cash")
    with pytest.raises(InvalidInput, match=r"block_cache\.every"):
        made(model, fast={"name": "block_cache", "every": 0})
    with pytest.raises(InvalidInput, match="fast"):
        made(model, fast=3)
    with pytest.raises(InvalidInput, match="neither a U-Net's stages"):
        sfumato.generate(tiny, concept="cat", fast="block_cache")
