"""Recompute: what blocks make on their way is computed again for the gradient, in place of being kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.acceleration.quick_convolutions import quick_convolutions
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Chain, Context, Hooks, Site, all_sites

_KINDS = ("residual", "transformer")


def recomputing(network: nn.Module, winograd: bool) -> Callable[..., Any]:
    """The network's forward, of which each block keeps what it is given alone.

    Memory for the way back falls to what stands between the blocks and in one of them; a step takes a third
    longer. Numbers are the same, but that gradients are summed in another order.

    Chen, Xu, Zhang & Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.

    Args:
        network: with sites of blocks.
        winograd: whether its convolutions go by Winograd in training, as they then must the second time.

    Raises:
        InvalidInput: a network without blocks.
    """
    if not any(site.kind in _KINDS for site in all_sites(network)):
        raise InvalidInput(
            f"a {type(network).__name__} has no blocks", where="recompute", do="leave it out of the run"
        )
    own, again = network.forward, partial(quick_convolutions, network) if winograd else nullcontext

    def forward(x: Tensor, time: Tensor, condition: Condition) -> Any:
        hooks: Hooks = Recomputed(again)
        if condition.hooks is not None:
            hooks = Chain(hooks, condition.hooks)
        return own(x, time, replace(condition, hooks=hooks))

    return forward


@dataclass(frozen=True, eq=False)
class Recomputed(Hooks):
    """Hooks that compute blocks twice.

    Args:
        again: what the second time happens in.
    """

    again: Callable[[], AbstractContextManager[Any]] = nullcontext

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """What run(h) is."""
        if site.kind not in _KINDS or not torch.is_grad_enabled():
            return run(h)
        ways = lambda: (nullcontext(), self.again())  # noqa: E731
        given = _Given.apply(h)  # type: ignore[no-untyped-call]
        made: Tensor = checkpoint(run, given, use_reentrant=False, context_fn=ways)
        return made


class _Given(torch.autograd.Function):
    """h, kept for the way back where those who count what is kept can see it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
