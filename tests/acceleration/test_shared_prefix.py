"""The shared prefix: the same pictures for less, and rows that are not alike have their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato
from sfumato.acceleration.shared_prefix import SharedPrefix
from sfumato.core.condition import Condition
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site, all_sites
from sfumato.core.level import Level
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.sd_unet import SDUNet

LEVEL = Level(0.8, 0.6)


class Rows(Hooks):
    """How many rows each attention is given, by the name of its place."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        self.seen[site.name] = len(q)
        return attend(q, k, v)


def network(**settings: Any) -> SDUNet:
    """A small one whose every weight is drawn, so that all of it matters."""
    torch.manual_seed(3)
    made = SDUNet(channels=32, multipliers=(1, 2), attention=(1, 2), heads=2, tokens=12, blocks=1, **settings)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.1)
    return made.eval().requires_grad_(False)


def told(rows: int, branches: int, **slots: Tensor) -> Condition:
    """Rows of each branch, with tokens of their own."""
    draw = torch.Generator().manual_seed(5)
    branch = torch.arange(branches).repeat_interleave(rows)
    return Condition(tokens=torch.randn(rows * branches, 7, 12, generator=draw), branch=branch, **slots)


def both(net: SDUNet, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor, dict[str, int]]:
    """What the network says, and says with the prefix shared; and the rows that attentions then had."""
    time, rows = torch.full((len(x),), 300.0), Rows()
    plan = SharedPrefix().plan(net)
    assert plan is not None
    inner = Chain(plan(LEVEL), rows)  # type: ignore[arg-type]
    return net(x, time, condition), net(x, time, replace(condition, hooks=inner)), rows.seen


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_first_attention_alone_is_shared(rows: int, branches: int) -> None:
    x = torch.randn(rows, 4, 8, 8).repeat(branches, 1, 1, 1)
    net = network()
    plain, shared, seen = both(net, x, told(rows, branches))
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)
    first, *rest = (site.name for site in all_sites(net) if site.kind in ("self", "cross"))
    assert seen.pop(first) == rows
    assert seen == dict.fromkeys(rest, rows * branches)


@pytest.mark.parametrize("what", ["x", "vector", "channels"])
def test_rows_that_are_not_alike_have_their_own(what: str) -> None:
    """By as little as can be told; sharing would be wrong by more than rounding."""
    x = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    slots: dict[str, Tensor] = {}
    if what == "x":
        x[1, 2, 3, 4] += 1e-3
    elif what == "vector":
        slots["vector"] = torch.eye(2)
    else:
        slots["channels"] = torch.randn(2, 1, 8, 8)
    net = network(classes=2 if what == "vector" else 0, in_channels=5 if what == "channels" else 4)
    plain, shared, seen = both(net, x, told(1, 2, **slots))
    assert torch.equal(shared, plain)
    assert set(seen.values()) == {2}


def test_without_guidance_nothing_is_shared() -> None:
    """Equal rows of one branch are pictures of their own, as two prompts of the same seed are."""
    x = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    _, _, seen = both(network(), x, told(2, 1))
    assert set(seen.values()) == {2}


@pytest.mark.parametrize(
    "net",
    [
        ADM(classes=0, channels=32, multipliers=[1], attention=[1]),
        SDUNet(channels=32, multipliers=(1, 2), attention=(1,), heads=2, tokens=12, cross_only=(1,)),
        SDUNet(channels=32, multipliers=(1, 2), attention=(1,), heads=2, tokens=12).to("meta"),
    ],
    ids=["no text", "text first", "elsewhere"],
)
def test_networks_without_such_a_prefix_are_left_alone(net: Any) -> None:
    assert SharedPrefix().plan(net) is None


def test_pictures_are_the_same(text_unet: Callable[..., Model]) -> None:
    """Guided, of two prompts at once, by themselves and with an edit that meets the same attention."""
    model = text_unet()
    asked: dict[str, Any] = {"prompt": ["a red cat", "a red apple"], "seeds": [3, 3], "size": 8, "steps": 4}
    for edit in (None, "prompt_to_prompt"):
        plain = sfumato.generate(model, **asked, guidance=3.0, edit=edit)
        shared = sfumato.generate(model, **asked, guidance=3.0, edit=edit, fast="shared_prefix")
        torch.testing.assert_close(shared.tensor, plain.tensor, rtol=0, atol=1e-5)
        assert shared.recipe["fast"] == [{"name": "shared_prefix"}]
