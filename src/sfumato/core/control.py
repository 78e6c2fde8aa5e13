"""Control: the contracts of what reads beside a network and adds to its features, or advises its blocks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.hooks import Hooks


class Control(Protocol):
    """Reads a hint, a picture, and says what is added to a network's features, as `residuals` takes it.

    One that has `stages`, numbers of a U-Net's stages, says as many maps, which are added to what these
    stages make and go on through those after them.
    """

    @property
    def factor(self) -> int:
        """How many pixels of the hint, along a side, make one place of x."""
        ...

    def check_fits(self, network: nn.Module) -> None:
        """Raise InvalidInput, in one sentence, where it cannot steer such a network."""
        ...

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """x (B, C, H, W), time (B,), what the network is told, hint (B, c, factor · H, factor · W)."""
        ...


class Advice(Protocol):
    """Reads the condition's image tokens, and says it as hooks around what the network does."""

    def check_fits(self, network: nn.Module) -> None:
        """Raise InvalidInput, in one sentence, where it cannot advise such a network."""
        ...

    def hooks(self, image_tokens: Tensor, network: nn.Module, x: Tensor, time: Tensor) -> Hooks:
        """The hooks of one call of a network, whose sites they name, on x (B, C, H, W) at time (B,).

        Image tokens are (B, M, D).
        """
        ...
