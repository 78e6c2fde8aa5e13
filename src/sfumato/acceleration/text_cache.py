"""Text cache: keys and values of what a network is told are computed once a prompt, not once a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.acceleration import Acceleration
from sfumato.core.hooks import Site
from sfumato.core.meta import sharing

_REMEMBERED = 4
"""Inputs that a layer remembers the results of: a walk has one or two, walks in turn a few."""


@dataclass(frozen=True)
class TextCache(Acceleration):
    """Attentions to the condition's tokens remember what their layers made of tokens they were given before.

    From step to step of a walk the tokens are the same, and so are keys and values, to the bit. Tokens are
    compared number by number, which costs next to nothing beside the layers, and no prompt is taken for
    another. On other devices than a CPU comparing would have the program wait, and nothing is remembered.
    """

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """A copy that shares the weights; the module itself where nothing attends to tokens."""
        names = [
            f"{name}.{layer}"
            for name, part in module.named_modules()
            if isinstance(site := getattr(part, "site", None), Site) and site.kind == "cross"
            for layer in ("to_k", "to_v")
            if isinstance(getattr(part, layer, None), nn.Linear)
        ]
        if not names:
            return module
        made = sharing(module)
        for name in names:
            parent, _, own = name.rpartition(".")
            layer = module.get_submodule(name)
            if not isinstance(layer, Remembering):
                setattr(made.get_submodule(parent), own, Remembering.of(layer))  # type: ignore[arg-type]
        return made


class Remembering(nn.Linear):
    """A linear layer that shares another's weights and remembers its last few results."""

    @staticmethod
    def of(layer: nn.Linear) -> Remembering:
        """Of a layer, which computes what is not remembered."""
        made = Remembering(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight, made.bias, made.training = layer.weight, layer.bias, layer.training
        # Not as its child, whose weights would have another name.
        made.computing, made.known = (layer,), ()
        return made

    computing: tuple[nn.Linear]
    known: tuple[tuple[Tensor, tuple[int, ...], Tensor], ...]

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, D) → (B, M, width)."""
        (layer,) = self.computing
        if torch.is_grad_enabled() or tokens.device.type != "cpu" or self.weight is not layer.weight:
            return super().forward(tokens)
        weights = [each for each in (self.weight, self.bias) if each is not None]
        state = tuple(0 if each.is_inference() else each._version for each in weights)
        for given, then, made in self.known:
            if then == state and given.dtype == tokens.dtype and torch.equal(given, tokens):
                return made
        made = layer(tokens)
        # Replaced as a whole, so that threads may share it.
        self.known = ((tokens.clone(), state, made), *self.known[: _REMEMBERED - 1])
        return made
