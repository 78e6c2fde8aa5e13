"""Accelerations: what makes a walk cheaper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sfumato.core.reverse import Plan


class Acceleration:
    """What makes a walk cheaper: other layers with the same weights, hooks that save work, or both."""

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """The network, or the autoencoder of its space, made cheaper for good; by itself it is left alone.

        Args:
            module: it is not changed; what is made of it shares its weights.
            run: has a copy on the meta device compute what it will be asked for.
        """
        return module

    def plan(self, network: nn.Module) -> Plan | None:
        """Which hooks to use at which level of one walk; none by itself.

        It is asked anew for every walk, so that whatever it remembers is of that walk alone. Its hooks stand
        inside of all others: an edit sees what the network then does.

        Raises:
            InvalidInput: where the network has no place for them.
        """
        return None
