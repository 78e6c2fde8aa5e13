"""CLIP's objective: each picture's own caption among those of the batch, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfumato.core.alone import Reader
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.model import Model
from sfumato.training.objectives.objective import Loss, TrainingObjective

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Clip(TrainingObjective):
    """Symmetric cross-entropy of similarities s · cos(image_i, text_j), by rows and by columns.

        L_i = -½ log softmax_j(S_ij)_i - ½ log softmax_j(S_ji)_i

    Pictures of the batch under the very same caption are right answers as well: the target is even among
    them. The temperature 1 / s learns too; s is kept from 1 to what the towers allow, 100 if not said.

    Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3.

    Args:
        caption: the input that is one.
    """

    caption: str = "caption"

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, 3, H, W) with their captions.

        Its parts are the "error" and the "accuracy", 1 where a picture's likeliest caption is its own.
        """
        towers = _towers(model)
        towers.cap()
        value, right = self._compared(towers, batch)
        return Loss(value, torch.zeros(len(value)), {"error": value.detach(), "accuracy": right})

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that asks for gradients."""
        for prefix, part in model.modules().items():
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter

    def timeless(self, model: Model, batch: Batch) -> Tensor:
        return self._compared(_towers(model), batch)[0]

    def _compared(self, towers: ClipFeatures, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses and whether the likeliest caption is right, both (B,)."""
        said: list[Any] = batch.inputs.get(self.caption) or []
        if not said or any(not isinstance(text, str) for text in said):
            raise InvalidInput("the data say no caption", where=self.caption, do="name the input they do say")
        image = batch.image.to(towers.logit_scale.device)
        similarity = towers(image, said).float()
        same = torch.tensor([[one == other for other in said] for one in said], device=image.device)
        target = same / same.sum(1, keepdim=True)
        across, down = similarity.log_softmax(1), similarity.T.log_softmax(1)
        value = -(target * (across + down)).sum(1) / 2
        right = same.gather(1, similarity.argmax(1, keepdim=True))[:, 0]
        return value, right.to(value)


def _towers(model: Model) -> ClipFeatures:
    network = model.denoiser.network if isinstance(model.denoiser, Reader) else None
    if not isinstance(network, ClipFeatures):
        raise InvalidInput(
            "this model has no two towers",
            where="model",
            do="give model: {encoder: {name: clip_features, ...}}",
        )
    return network
