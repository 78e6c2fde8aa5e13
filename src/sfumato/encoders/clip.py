"""CLIP: both towers, and how alike a text and a picture are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.clip_text import PUBLISHED, ClipText


class TwoTowers(nn.Module, ABC):
    """Texts and pictures compared by s · cos, whose scale s = exp(logit_scale) ≤ `most` is learnt."""

    logit_scale: nn.Parameter
    most: float = 100.0

    @abstractmethod
    def texts(self, said: Any) -> Tensor:
        """Texts → (B, D) of length 1."""

    @abstractmethod
    def images(self, x: Tensor) -> Tensor:
        """Pictures → (B, D) of length 1."""

    def forward(self, x: Tensor, said: Any) -> Tensor:
        """Pictures (B, 3, H, W) and M texts, as `images` and `texts` take them → similarity (B, M)."""
        return self.logit_scale.clamp(max=math.log(self.most)).exp() * self.images(x) @ self.texts(said).T

    @torch.no_grad()
    def cap(self) -> None:
        """Bring the scale back to 1 .. most: to be done after each step of training."""
        self.logit_scale.clamp_(0, math.log(self.most))


@dataclass(eq=False, repr=False)
class Clip(TwoTowers):
    """A text tower and an image tower that meet in one space.

        similarity = s · cos(image, text),  s = exp(logit_scale) ≤ 100

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
    arXiv:2103.00020, section 2.3.

    Args:
        text: the text tower.
        image: the image tower.

    Raises:
        InvalidInput: towers whose pooled vectors differ in length.
    """

    text: ClipText
    image: ClipImage

    def __new__(cls, *args: Any, **kwargs: Any) -> Clip:
        # A module must be set up before it is given others, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        here, there = self.text.pooled_width, self.image.projection or self.image.width
        if here != there:
            raise InvalidInput(f"a text is {here} numbers and a picture {there}", where="clip")
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @staticmethod
    def published(name: str) -> Clip:
        """Both towers with the settings of published weights, e.g. "clip_b32" or "clip_l14"."""
        image = ClipImage.published(name)
        text = name.removesuffix("_336")
        projected = f"{text}_projected"
        return Clip(ClipText.published(projected if projected in PUBLISHED else text), image)

    def texts(self, said: Tensor) -> Tensor:
        """Ids (B, N) → (B, D) of length 1."""
        pooled = self.text(said, layer=0).pooled
        return F.normalize(pooled, dim=-1)

    def images(self, x: Tensor) -> Tensor:
        """Prepared pictures (B, 3, size, size) → (B, D) of length 1."""
        return F.normalize(self.image(x).pooled, dim=-1)
