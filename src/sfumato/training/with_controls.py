"""A trained model with fresh controls, of which nothing but the controls will learn."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfumato.checkpoints.controlled import controlled
from sfumato.core.errors import InvalidInput
from sfumato.data.item import Dataset
from sfumato.model import Model
from sfumato.registry import find


def with_controls(start: Model, controls: Mapping[str, str], data: Dataset) -> Model:
    """The model with one fresh control for each of the data's hints; at first it does as it did.

    Args:
        start: whose network is copied; what it is told by (words that learnt with it) stays as it is.
        controls: kinds of controls by the input they read, e.g. {"hint": "controlnet"}.
        data: whose first item shows how many channels each hint has.

    Raises:
        InvalidInput: the data tell no such hint, or a kind of control is not begun from a network.
    """
    sides, space = start.space.step, start.space
    factor = sides // space.shape(sides, sides)[1]
    item, fresh = data.load(0, 0), []
    for name, kind in controls.items():
        hint = item.inputs.get(name)
        if not isinstance(hint, Tensor):
            raise InvalidInput("the data tell no hint of this name", where=f"controls.{name}")
        begin = getattr(find("control", kind), "of", None)
        if begin is None:
            raise InvalidInput(f"a {kind} is not begun from a network", where=f"controls.{name}")
        fresh.append(begin(start.denoiser.network, hint_channels=hint.shape[0], factor=factor))
    made = controlled(start, fresh, tuple(controls))
    for part in (made.conditioner, made.space):
        if (freeze := getattr(part, "requires_grad_", None)) is not None:
            freeze(False)
    return made
