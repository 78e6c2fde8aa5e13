"""Autoguidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level


@dataclass(frozen=True)
class Auto:
    """Autoguidance: move the estimate away from that of a worse version of the model.

        x0 = x0(weak) + scale · (x0 - x0(weak))

    The weaker model is smaller or was trained for less time, on the same data, and is told the same
    condition. It errs where the model errs, only more, so that the difference points to better pictures
    without making them more alike, as classifier-free guidance does. It may have another network, prediction
    or process. Scale 1 is the model alone, in a single call. The reverse variance of learned-range models
    stays the model's.

    Karras, Aittala, Kynkäänniemi, Lehtinen, Aila & Laine 2024, "Guiding a Diffusion Model with a Bad Version
    of Itself", arXiv:2406.02507 (scales about 2 there).

    Args:
        scale: how strongly.
        model: the weaker model: to `sfumato.generate` the folder of a trained one, or one loaded; else a
            denoiser.

    Raises:
        InvalidInput: there is no weaker model, when guidance is to be applied.
    """

    scale: float = 2.0
    model: str | Any | None = None

    def __post_init__(self) -> None:
        known = self.model is None or isinstance(self.model, str) or callable(self.model)
        if not known and not callable(getattr(self.model, "denoiser", None)):
            raise InvalidInput(
                f"{type(self.model).__name__} is no path, model or denoiser", where="auto.model"
            )

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser."""
        if self.scale == 1:
            return denoiser
        weaker = getattr(self.model, "denoiser", self.model)
        if not callable(weaker):
            raise InvalidInput(
                "no weaker model is given" if weaker is None else "the weaker model is not loaded",
                where="auto.model",
                do="give the folder of a smaller or less trained one to sfumato.generate, or a denoiser",
            )

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            x0, variance = denoiser(x, level, condition)
            return Denoised(torch.lerp(weaker(x, level, condition).x0, x0, self.scale), variance)

        return guided
