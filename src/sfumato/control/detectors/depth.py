"""Depth: how near everything in a picture is, as a model of the user's tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.borrowed import DEVIATION, MEAN, opened, shown, tensor_of
from sfumato.control.detectors.reading import colors
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Depth:
    """Depth of a picture by an estimator that the user has, spread over [-1, 1], near white.

    Args:
        model: the estimator, of pictures (1, 3, h, w), telling one number for each place: a function, or the
            path of a TorchScript or torch.export file, which is a program: name one that you trust.
        distance: it tells distances, far high, of which the inverse is drawn; else inverse depths, near high,
            as MiDaS and its like do.
        side: the shorter side that pictures are scaled to for it, 0 for their own.
        multiple: what it wants sides to be a multiple of.
        mean, deviation: of pictures in [0, 1] as it takes them; ImageNet's by default, 0.5 for MiDaS' hybrid.

    Raises:
        InvalidInput: settings that are none; a model that tells something else.
        MissingExtra: no model is named.
        NotFound, CheckpointCorrupt: no such file, or no program in it.
    """

    model: Any = None
    distance: bool = False
    side: int = 384
    multiple: int = 32
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION

    def __post_init__(self) -> None:
        if self.side < 0 or self.multiple < 1 or min(self.deviation) <= 0:
            raise InvalidInput("sides or deviations that are none", where="depth")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (1, H, W) in [-1, 1]."""
        model, picture = opened(self.model, "depth"), colors(given, "depth")
        with torch.inference_mode():
            x = shown(picture, self.side, self.multiple, self.mean, self.deviation)
            told = tensor_of(model(x), "depth").clone()
        while told.ndim > 2 and len(told) == 1:
            told = told[0]
        if told.ndim != 2:
            raise InvalidInput(f"the model told {tuple(told.shape)} of one picture", where="depth.model")
        near = 1 / told.clamp_min(1e-6) if self.distance else told
        size = (picture.shape[1], picture.shape[2])
        near = F.interpolate(near[None, None], size, mode="bicubic", antialias=True)[0]
        low, high = near.min(), near.max()
        return 2 * (near - low) / (high - low) - 1 if high > low else torch.zeros_like(near)
