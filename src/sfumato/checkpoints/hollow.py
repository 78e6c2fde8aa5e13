"""Models built without numbers, to be filled from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sfumato.core.meta import Undrawn, without_numbers
from sfumato.model import Model


def hollow(build: Callable[[], Model]) -> Model:
    """A model whose saved tensors hold no numbers (meta); what is in no file, such as a filter, is as built.

    Nothing is drawn at random, and no memory is taken that the file's own numbers do not take.

    Args:
        build: makes the model; called a second time where a part keeps numbers that are not saved.
    """
    with without_numbers():
        model = build()
    kept = {place: buffer for place, buffer in _unsaved(model).items() if buffer.is_meta}
    donor: Mapping[tuple[str, str], Tensor] = {}
    if any(buffer.numel() for buffer in kept.values()):
        with Undrawn():
            donor = _unsaved(build())
    parts = model.modules()
    for (part, name), buffer in kept.items():
        owner, _, last = name.rpartition(".")
        module: nn.Module = parts[part].get_submodule(owner)
        real = donor.get((part, name))
        module.register_buffer(last, torch.empty_like(buffer, device="cpu") if real is None else real, False)
    return model


def _unsaved(model: Model) -> dict[tuple[str, str], Tensor]:
    """Buffers that no file holds, by part and name."""
    return {
        (part, name): buffer
        for part, module in model.modules().items()
        for saved in (module.state_dict().keys(),)
        for name, buffer in module.named_buffers()
        if name not in saved
    }
