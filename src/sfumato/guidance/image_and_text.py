"""Guidance by a picture and a text, each with a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level


@dataclass(frozen=True)
class ImageAndText:
    """Guidance of a model that is told a picture and a text: how near to the one, how much of the other.

        x0 = x0(∅, ∅) + image_scale · (x0(picture, ∅) - x0(∅, ∅))
                      + scale · (x0(picture, text) - x0(picture, ∅))

    The picture stands in the condition's channels, where none is zeros, as the conditioner `image` tells it;
    the text is all the rest. A negative prompt stands for no text. One batched call of all three; both scales
    1 are the plain conditional model, and image_scale = scale is classifier-free guidance by both at once.
    The reverse variance of learned-range models stays the conditional one.

    Brooks, Holynski & Efros 2022, "InstructPix2Pix: Learning to Follow Image Editing Instructions",
    arXiv:2211.09800, equation 3.

    Args:
        scale: of the text: how much the picture is changed.
        image_scale: of the picture: how much of it stays.

    Raises:
        InvalidInput: when asked, of a model that is told no picture.
    """

    scale: float = 7.5
    image_scale: float = 1.5

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser."""

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            if condition.channels is None:
                raise InvalidInput(
                    "this model is told no picture", where="image_and_text", do="guidance: classifier_free"
                )
            if self.scale == self.image_scale == 1:
                return denoiser(x, level, condition)
            unsaid = null.tile(len(x))
            # With a negative prompt the null holds the picture, which is no matter of opinion elsewhere.
            branches = (
                replace(unsaid, channels=torch.zeros_like(condition.channels)),
                replace(unsaid, channels=condition.channels),
                condition,
            )
            said = denoiser(torch.cat([x] * 3), level, Condition.stack(branches))
            nothing, picture, both = said.x0.chunk(3)
            x0 = nothing + self.image_scale * (picture - nothing) + self.scale * (both - picture)
            return Denoised(x0, None if said.variance is None else said.variance.chunk(3)[2])

        return guided
