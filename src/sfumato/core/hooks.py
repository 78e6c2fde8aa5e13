"""Hooks: around-advice for every attention and block of a network, passed in the condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from sfumato.core.condition import Condition


class Site(NamedTuple):
    """Where in a network a hook is called.

    Args:
        name: dotted module path, the one state dicts use, e.g. "input_blocks.4.1".
        kind: "self" or "cross" for attentions; "residual" or "transformer" for blocks, "stage" for those of
            one map together, "between" for the place between a transformer block's two attentions.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Context:
    """What every block of a network sees besides its features h.

    Args:
        embedding: (B, E) time embedding with the condition's vector already added.
        condition: the condition of this call; tokens, mask, branch and hooks are read from it.
    """

    embedding: Tensor
    condition: Condition

    @property
    def hooks(self) -> Hooks | None:
        return self.condition.hooks


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Hooks:
    """Around-advice with the identity as default; override what is needed.

    Hooks live in the condition, never on modules, so that threads cannot mix them up.
    """

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Around one attention: q (B, heads, N, D); k, v (B, heads, M, D) → (B, heads, N, D)."""
        return attend(q, k, v)

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Around one block: h (B, C, H, W) or (B, N, C), and what run(h) returns."""
        return run(h)


class Chain(Hooks):
    """Several hooks as one; the first is outermost."""

    def __init__(self, *hooks: Hooks) -> None:
        self.hooks = hooks

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        for hook in reversed(self.hooks):
            attend = _attention(hook, site, context, attend)
        return attend(q, k, v)

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        for hook in reversed(self.hooks):
            run = _block(hook, site, context, run)
        return run(h)


def _attention(hook: Hooks, site: Site, context: Context, attend: Attend) -> Attend:
    return lambda q, k, v: hook.attention(site, context, attend, q, k, v)


def _block(
    hook: Hooks, site: Site, context: Context, run: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda h: hook.block(site, context, run, h)


def all_sites(network: nn.Module) -> list[Site]:
    """Every place of a network where hooks are called, each as often as a module stands there."""
    found = (getattr(module, "site", None) for module in network.modules())
    return [site for site in found if isinstance(site, Site)]


def name_sites(network: nn.Module) -> None:
    """Give each module that carries a `site` its dotted path as name; networks call it once, when built."""
    for name, module in network.named_modules():
        site = getattr(module, "site", None)
        if isinstance(site, Site):
            module.site = Site(name, site.kind)
