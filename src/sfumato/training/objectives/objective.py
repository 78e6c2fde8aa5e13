"""What an objective is: a loss of a batch, and which parameters it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.noise import Noise
from sfumato.model import Model

if TYPE_CHECKING:
    from sfumato.data.item import Batch, Dataset


@dataclass(frozen=True)
class Loss:
    """A loss, sample by sample.

    Args:
        value: (B,), what is averaged and differentiated.
        t: times (B,) of the samples.
        parts: named detached tensors (B,) the value is made of; "error" is the weighted error without
            importance weights.
    """

    value: Tensor
    t: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def told(model: Model, batch: Batch) -> Condition:
    """What the conditioner makes of a batch: of the inputs that it heeds, and of the pictures' size."""
    heeded = model.conditioner.inputs
    inputs = {name: values for name, values in batch.inputs.items() if name in heeded}
    if "size" in heeded:
        height, width = batch.image.shape[-2:]
        inputs["size"] = [(height, width)] * len(batch.image)
    return model.conditioner(len(batch.image), **inputs).to(model.device)


class TrainingObjective:
    """What is minimised. An objective with memory writes `observe` and the last two methods too."""

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """The loss of a batch; all chance comes from `noise`, one seed a row."""
        raise NotImplementedError

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors of what is trained."""
        raise NotImplementedError

    def modules(self) -> dict[str, nn.Module]:
        """Networks of its own, by prefix: they go where the model's go."""
        return {}

    def errors(self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor) -> Tensor:
        """Weighted squared errors (B,) of clean x (B, C, ..) at times t (B,) with noise eps: validation."""
        raise NotImplementedError

    def timeless(self, model: Model, batch: Batch) -> Tensor | None:
        """The same of a batch, where times and noise play no part; None where they do."""
        return None

    def observe(self, model: Model, t: Tensor, errors: Tensor) -> None:
        """Errors (B,) met at times (B,), after an optimizer step."""

    def finish(self, model: Model, data: Dataset) -> dict[str, Any]:
        """What is measured of the model when training ends, for its card."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """The memory, for checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of state_dict."""
