"""Accelerations: what makes a walk cheaper."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from sfumato.core.reverse import Plan


class Acceleration(Protocol):
    """Hooks that save work, for one walk of a network.

    `plan` is asked anew for every walk, so that whatever it remembers is of that walk alone. Its hooks stand
    inside of all others: an edit sees what the network then does.
    """

    def plan(self, network: nn.Module) -> Plan:
        """Which hooks to use at which level; InvalidInput where the network has no place for them."""
        ...
