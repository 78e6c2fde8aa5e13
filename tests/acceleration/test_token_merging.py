"""Token merging: by hand, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.acceleration.token_merging import Merged, TokenMerging
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.networks.mlp import MLP
from sfumato.networks.sd_unet import SDUNet

LEVEL = Level(0.6, 0.8)
X = torch.randn(2, 2, 8, 6, generator=torch.Generator().manual_seed(1))
TIME = torch.tensor([10.0, 700.0])
TOLD = Condition(tokens=torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2)))


def unet() -> SDUNet:
    torch.manual_seed(3)
    network = SDUNet(
        in_channels=2, out_channels=2, channels=32, multipliers=(1, 2), blocks=1, attention=(1, 2), tokens=4
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def answer(network: nn.Module, *hooks: Hooks | None) -> Tensor:
    held = [each for each in hooks if each is not None]
    with torch.no_grad():
        return network(X, TIME, Condition(tokens=TOLD.tokens, hooks=Chain(*held) if held else None))


class Seen(Hooks):
    """How many places attend, by site; inside of what merges them."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        self.counts[f"{site.kind} {site.name}"] = (q.shape[2], k.shape[2])
        return attend(q, k, v)


def test_nothing_merged_changes_nothing() -> None:
    network = unet()
    assert torch.equal(answer(network, TokenMerging(0.0).plan(network)(LEVEL)), answer(network))


@pytest.mark.parametrize(("factor", "small"), [(1, 12), (2, 6)])
def test_places_of_large_maps_attend_in_fewer(factor: int, small: int) -> None:
    network, seen = unet(), Seen()
    answer(network, TokenMerging(0.5, factor).plan(network)(LEVEL), seen)
    own = {name: counts for name, counts in seen.counts.items() if name.startswith("self")}
    assert {counts for name, counts in own.items() if "middle" not in name} == {(24, 24), (small, small)}
    # To the text all places attend.
    assert {counts[0] for name, counts in seen.counts.items() if name.startswith("cross")} == {48, 12}


def test_merging_by_hand() -> None:
    """Of a map of 4 x 6 the goals are one a cell, the most alike are gone, and means are means."""
    h = torch.randn(2, 24, 5, generator=torch.Generator().manual_seed(4))
    merged = Merged.of(h, (4, 6), 0.25, seed=7)
    cells = {(int(g) // 6 // 2, int(g) % 6 // 2) for g in merged.goals}
    assert cells == {(i, j) for i in range(2) for j in range(3)}
    assert merged.gone.shape == (2, 6)
    metric = F.normalize(h, dim=-1)
    for row in range(2):
        places = torch.cat((merged.kept[row], merged.gone[row], merged.goals))
        assert sorted(places.tolist()) == list(range(24))
        likeness = metric[row] @ metric[row, merged.goals].mT
        best = likeness.max(1)
        assert torch.equal(best.indices[merged.gone[row]], merged.to[row])
        assert best.values[merged.gone[row]].min() >= best.values[merged.kept[row]].max()
        values = h[row : row + 1, None]
        one = Merged(
            merged.kept[row : row + 1], merged.gone[row : row + 1], merged.goals, merged.to[row : row + 1]
        )
        together = one.merge(values)[0, 0]
        for number, goal in enumerate(merged.goals):
            came = merged.gone[row][merged.to[row] == number]
            mean = h[row, torch.cat((goal[None], came))].mean(0)
            torch.testing.assert_close(together[len(merged.kept[row]) + number], mean)
        parted = one.part(one.merge(values))[0, 0]
        torch.testing.assert_close(parted[merged.kept[row]], h[row, merged.kept[row]])
        for place, number in zip(merged.gone[row], merged.to[row], strict=True):
            assert torch.equal(parted[place], parted[merged.goals[number]])


def test_places_that_are_alike_lose_nothing() -> None:
    h = torch.randn(1, 1, 1, 5).expand(1, 3, 24, 5).contiguous()
    merged = Merged.of(h[:, 0], (4, 6), 0.75, seed=1)
    torch.testing.assert_close(merged.part(merged.merge(h)), h)


def test_it_is_merging_tokens_before_queries_keys_and_values() -> None:
    """As the paper has it: tokens are merged, attended among, and parted, inside of one block."""
    network = unet()
    block: Any = network.input_blocks[1][1].transformer_blocks[0]
    h = torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(5))
    hooks: Any = TokenMerging(0.5).plan(network)(LEVEL)
    hooks.sides = (8, 6)
    context = Context(torch.zeros(2, 128), Condition(tokens=TOLD.tokens, hooks=hooks))
    plain = Context(torch.zeros(2, 128), TOLD)
    with torch.no_grad():
        ours = block(h, context)
        merged = Merged.of(h, (8, 6), 0.5, hooks.seed)
        fewer = merged.merge(block.norm1(h)[:, None])[:, 0]
        theirs = h + merged.part(block.attn1(fewer, plain)[:, None])[:, 0]
        theirs = theirs + block.attn2(block.norm2(theirs), plain)
        theirs = theirs + block.ff(block.norm3(theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    network = unet()
    plan = TokenMerging().plan(network)
    with torch.no_grad():
        both = network(X, TIME, Condition(tokens=TOLD.tokens, hooks=plan(LEVEL)))
        alone = network(X[1:], TIME[1:], Condition(tokens=TOLD[1].tokens, hooks=plan(LEVEL)))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both, answer(network), atol=1e-4)


@pytest.mark.parametrize("wrong", [{"ratio": 0.8}, {"ratio": -0.1}, {"factor": 0}])
def test_settings_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"token_merging.{next(iter(wrong))}"):
        TokenMerging(**wrong)


def test_a_network_without_blocks_is_refused() -> None:
    make: Callable[[], nn.Module] = lambda: MLP(dim=2, width=8, depth=2)  # noqa: E731
    with pytest.raises(InvalidInput, match="no blocks of self-attention"):
        TokenMerging().plan(make())
