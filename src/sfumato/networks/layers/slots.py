"""The check that a network heeds every slot of a condition that is filled."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


def joined(
    x: Tensor,
    condition: Condition,
    *,
    in_channels: int,
    multiple: int = 1,
    classes: int = 0,
    told: bool = False,
    tokens: int = 0,
    residuals: int = 0,
) -> Tensor:
    """x with the condition's draft and channels, once it is sure that nothing said is left unheard.

    Args:
        x: (B, C, H, W).
        condition: what the network is told.
        in_channels: of x and the condition's draft and channels together.
        multiple: H and W must divide by it.
        classes: length of the vector the network takes; 0 for none.
        told: the vector cannot be left out.
        tokens: width of the tokens it attends to; 0 for none.
        residuals: how many residuals it takes.

    Raises:
        InvalidInput: a slot is filled that the network does not take, or in another shape; `where` names it.
    """
    if told and condition.vector is None:
        raise InvalidInput(
            f"nothing is said where the network is told a vector of {classes}",
            where="vector",
            do="give the pooled text and the sizes, or zeros",
        )
    if condition.vector is not None and condition.vector.shape[1] != classes:
        raise InvalidInput(
            f"a vector of {condition.vector.shape[1]} for a network of {classes} classes", where="vector"
        )
    if condition.tokens is not None and condition.tokens.shape[2] != tokens:
        raise InvalidInput(
            f"tokens of width {condition.tokens.shape[2]} for a network of {tokens}", where="tokens"
        )
    if condition.mask is not None and condition.tokens is None:
        raise InvalidInput("a mask without tokens", where="mask")
    if condition.hints:
        raise InvalidInput("this network has no control that reads hints", where="hints")
    if condition.image_tokens is not None:
        raise InvalidInput("this network has no second attention", where="image_tokens")
    if condition.residuals and len(condition.residuals) != residuals:
        raise InvalidInput(
            f"{len(condition.residuals)} residuals for a network that takes {residuals}", where="residuals"
        )
    for slot in ("draft", "channels"):
        beside = getattr(condition, slot)
        if beside is None:
            continue
        if beside.shape[2:] != x.shape[2:]:
            raise InvalidInput(
                f"a map of {tuple(beside.shape[2:])} beside one of {tuple(x.shape[2:])}", where=slot
            )
        x = torch.cat((x, beside.to(x)), dim=1)
    if x.shape[1] != in_channels:
        raise InvalidInput(
            f"{x.shape[1]} channels for a network of {in_channels}", where="x, draft, channels"
        )
    if x.shape[2] % multiple or x.shape[3] % multiple:
        raise InvalidInput(f"a map of {x.shape[2]} x {x.shape[3]} is not a multiple of {multiple}", where="x")
    return x
