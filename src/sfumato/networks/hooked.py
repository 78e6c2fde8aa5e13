"""Hooked: a network with a control that reads image tokens and acts by hooks, as one network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.control import Advice
from sfumato.core.hooks import Chain


@dataclass(eq=False, repr=False)
class Hooked(nn.Module):
    """A network whose blocks are advised by what a control makes of the condition's image tokens.

    The hooks are made anew in every call and stand in the condition, inside of those the caller gave; without
    image tokens the network is as it is. Where it has controls of hints too, these stand outside of this one,
    so that they are not advised.

    Args:
        network: with the sites the control goes around; it does not learn.
        control: an image prompt (IP-Adapter) or boxes (GLIGEN), which does.

    Raises:
        InvalidInput: a control that does not fit the network.
    """

    network: nn.Module
    control: Advice

    def __new__(cls, *args: Any, **kwargs: Any) -> Hooked:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        self.control.check_fits(self.network)
        self.network.requires_grad_(False)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition, with image tokens or without → (B, C, H, W)."""
        if condition.image_tokens is not None:
            hooks = self.control.hooks(condition.image_tokens, self.network, x, time)
            if condition.hooks is not None:
                hooks = Chain(condition.hooks, hooks)
            condition = replace(condition, image_tokens=None, hooks=hooks)
        result: Tensor = self.network(x, time, condition)
        return result
