"""Block caching: whole estimates are the network's own, those between leave the deep part out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.acceleration.block_cache import BlockCache
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS
from sfumato.core.reverse import ReverseProcess, nested
from sfumato.core.sampler import sample
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.interval import Interval
from sfumato.networks.dit import DiT
from sfumato.networks.mlp import MLP
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.registry import build

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: SDUNet(
        in_channels=2, out_channels=2, channels=32, multipliers=(1, 2), blocks=1, attention=(2,), tokens=4
    ),
    "dit": lambda: DiT(in_channels=2, out_channels=2, width=16, depth=5, heads=2, classes=0, tokens=4),
}
TOLD = Condition(tokens=torch.ones(2, 3, 4))
NULL = Condition(tokens=torch.zeros(2, 3, 4))
X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    network = NETWORKS[name]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


class Ran(Hooks):
    """Remembers which stages and blocks are really computed; it stands inside of what leaves them out."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        self.names.append(site.name)
        return run(h)


def walk(network: nn.Module, cache: BlockCache | None, steps: int = 7, guide: Any = None) -> tuple[Any, Ran]:
    ran = Ran()
    denoiser: Any = NetworkDenoiser(network, Flow(), PREDICTIONS["flow"](), "thousand")
    if guide is not None:
        denoiser = guide(denoiser, NULL)
    plan = nested(None if cache is None else cache.plan(network), lambda level: ran)
    times = build("times", "uniform")(Flow(), steps)
    reverse = ReverseProcess(denoiser, Flow(), TOLD, Noise([1, 2]), plan)
    with torch.no_grad():
        return sample(build("sampler", "euler"), reverse, X, times), ran


@pytest.mark.parametrize("name", NETWORKS)
def test_every_estimate_whole_is_the_network(name: str) -> None:
    network = made(name)
    assert torch.equal(walk(network, BlockCache(every=1))[0], walk(network, None)[0])


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [
        ("unet", {"input_blocks.0", "output_blocks.3"}, "middle_block"),
        ("dit", {"blocks.0", "blocks.4"}, "blocks.2"),
    ],
)
def test_the_deep_part_is_computed_every_so_often(name: str, outer: set[str], inner: str) -> None:
    network = made(name)
    plain, ran = walk(network, BlockCache(every=3))
    assert all(ran.names.count(site) == 7 for site in outer)
    assert ran.names.count(inner) == 3  # estimates 0, 3 and 6 of seven
    deep = {n for n in ran.names if n.startswith(("input_blocks", "output_blocks", "middle", "blocks"))}
    sites = {n for n in deep - outer if n.count(".") <= 1}
    assert all(ran.names.count(site) == 3 for site in sites)
    # It is another walk, and near the whole one.
    whole = walk(network, None)[0]
    assert not torch.equal(plain, whole)
    assert (plain - whole).norm() < 0.5 * (X - whole).norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_asked_the_same_again_it_says_the_same(name: str) -> None:
    network = made(name)
    plan, time = BlockCache(every=4).plan(network), torch.tensor([300.0, 300.0])
    with torch.no_grad():
        whole = network(X, time, TOLD)
        for number in range(4):
            told = replace(TOLD, hooks=plan(Level(0.7, 0.3 - 0.01 * number)))
            torch.testing.assert_close(network(X, time, told), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shallow", [1, 2, 4])
def test_what_is_reused_is_what_the_deep_part_made_before(shallow: int) -> None:
    """By hand: the last stages of a U-Net are shown new features of the first, and old ones of the deep."""
    network = made("unet")
    plan, times = BlockCache(2, shallow).plan(network), (torch.full((2,), 900.0), torch.full((2,), 800.0))
    assert isinstance(network, SDUNet)
    old, new = X, X + 1
    with torch.no_grad():
        network(old, times[0], replace(TOLD, hooks=plan(Level(0.1, 0.9))))
        ours = network(new, times[1], replace(TOLD, hooks=plan(Level(0.2, 0.8))))
        h, skips, context = network.encode(old, times[0], TOLD)
        for stage in network.output_blocks[:-shallow]:
            h = stage(torch.cat((h, skips.pop()), dim=1), context)
        _, skips, context = network.encode(new, times[1], TOLD)
        skips = skips[:shallow]
        for stage in network.output_blocks[-shallow:]:
            h = stage(torch.cat((h, skips.pop()), dim=1), context)
        by_hand, whole = network.out(h), network(new, times[1], TOLD)
    torch.testing.assert_close(ours, by_hand)
    assert not torch.allclose(ours, whole, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_calls_of_other_rows_are_computed_whole(name: str) -> None:
    """Guidance in an interval asks for four rows there and for two elsewhere; each is whole at first."""
    network = made(name)
    guide = Interval(0.2, 2.0, ClassifierFree(3.0))
    ours, _ = walk(network, BlockCache(every=100), guide=guide)
    whole, _ = walk(network, None, guide=guide)
    assert torch.isfinite(ours).all()
    assert (ours - whole).norm() < 0.5 * (X - whole).norm()


def test_each_walk_begins_anew() -> None:
    network = made("unet")
    cache = BlockCache(every=5)
    plan = cache.plan(network)
    denoiser = NetworkDenoiser(network, Flow(), PREDICTIONS["flow"](), "thousand")
    times = build("times", "uniform")(Flow(), 7)
    reverse = ReverseProcess(denoiser, Flow(), TOLD, Noise([1, 2]), plan)
    with torch.no_grad():
        first, again = (sample(build("sampler", "euler"), reverse, X, times) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(walk(network, cache)[0], first)


def test_what_has_no_deep_part_is_refused() -> None:
    with pytest.raises(InvalidInput, match="neither"):
        BlockCache().plan(MLP(dim=2, width=8, depth=2))
    for name, most in (("unet", 4), ("dit", 2)):
        BlockCache(shallow=most).plan(made(name))
        with pytest.raises(InvalidInput, match=r"block_cache\.shallow"):
            BlockCache(shallow=most + 1).plan(made(name))
    for wrong in ({"every": 0}, {"shallow": 0}):
        with pytest.raises(InvalidInput, match=f"block_cache.{next(iter(wrong))}"):
            BlockCache(**wrong)
