"""Hooks: the default runs the computation, chains nest with the first outermost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site, name_sites

SITE = Site("blocks.0", "self")
CONTEXT = Context(torch.zeros(1, 4), Condition())


class Add(Hooks):
    """Adds before and multiplies after, so that the order of nesting shows."""

    def __init__(self, add: float, times: float) -> None:
        self.add, self.times = add, times

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return attend(q + self.add, k, v) * self.times

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        return run(h + self.add) * self.times


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q + 10 * k + 100 * v


def test_the_identity_is_bitwise_neutral() -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    for hooks in (Hooks(), Chain(), Chain(Hooks(), Hooks())):
        assert torch.equal(hooks.attention(SITE, CONTEXT, attend, q, k, v), attend(q, k, v))
        assert torch.equal(hooks.block(SITE, CONTEXT, torch.sin, q), torch.sin(q))


def test_the_first_of_a_chain_is_outermost() -> None:
    outer, inner = Add(1.0, 2.0), Add(5.0, 3.0)
    h = torch.ones(2, 3)
    chain = Chain(outer, inner)
    assert torch.equal(chain.block(SITE, CONTEXT, lambda x: x**2, h), ((h + 1 + 5) ** 2) * 3 * 2)
    assert torch.equal(
        chain.block(SITE, CONTEXT, torch.sin, h),
        outer.block(SITE, CONTEXT, lambda x: inner.block(SITE, CONTEXT, torch.sin, x), h),
    )
    q = torch.ones(1, 1, 1, 2)
    assert torch.equal(chain.attention(SITE, CONTEXT, attend, q, q, q), (q + 6 + 110) * 6)


def test_a_hook_sees_its_site_and_context() -> None:
    seen: list[tuple[Site, Context]] = []

    class Look(Hooks):
        def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
            seen.append((site, context))
            return run(h)

    Chain(Hooks(), Look()).block(SITE, CONTEXT, torch.sin, torch.zeros(1))
    assert seen == [(SITE, CONTEXT)]


def test_a_context_finds_the_hooks_of_its_condition() -> None:
    hooks = Hooks()
    assert Context(torch.zeros(1), Condition(hooks=hooks)).hooks is hooks
    assert CONTEXT.hooks is None


def test_sites_are_named_by_module_path() -> None:
    class Block(nn.Module):
        site = Site("", "residual")

    network = nn.Sequential(nn.Sequential(Block(), nn.Linear(1, 1)), Block())
    name_sites(network)
    assert [m.site for m in network.modules() if isinstance(m, Block)] == [
        Site("0.0", "residual"),
        Site("1", "residual"),
    ]
