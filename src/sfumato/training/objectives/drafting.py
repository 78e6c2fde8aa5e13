"""Drafting: the conditioner's first guess of x, before any network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.conditioners.text_draft import TextDraft
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.model import Model
from sfumato.training.objectives.objective import Loss, TrainingObjective, told

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Drafting(TrainingObjective):
    """The squared error of a draft, mean((draft - x)²): trains the conditioner `text_draft` and no network.

    Its least is reached by E[x | caption]. A caption said of one picture alone is learnt by heart; held-out
    captions tell when that is all that is learnt.

    Han, Zheng & Zhou 2022, arXiv:2206.07275, section 2.3 (the mean is trained first).
    """

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, C, H, W) with batch.inputs."""
        value = self.timeless(model, batch)
        return Loss(value, torch.zeros(len(value)), {"error": value.detach()})

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the conditioner that ask for gradients."""
        if not isinstance(model.conditioner, TextDraft):
            raise InvalidInput(
                "this model's conditioner drafts nothing",
                where="model.conditioner",
                do="make it {name: text_draft, ...}",
            )
        for name, parameter in model.conditioner.named_parameters():
            if parameter.requires_grad:
                yield f"conditioner.{name}", parameter

    def timeless(self, model: Model, batch: Batch) -> Tensor:
        # No noise: a draft is of the latents' mean.
        return draft_error(told(model, batch), model.space.encode(batch.image.to(model.device)))


def draft_error(condition: Condition, x: Tensor) -> Tensor:
    """mean((draft - x)²) of rows (B, C, H, W); the draft stands first among the channels."""
    if condition.channels is None or condition.channels.shape[1] < x.shape[1]:
        raise InvalidInput("nothing is drafted", where="draft", do="tell the model by text_draft")
    return ((condition.channels[:, : x.shape[1]].float() - x) ** 2).flatten(1).mean(1)
