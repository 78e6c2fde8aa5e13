"""CLIP over features: texts and pictures in one space, by small heads on networks that others trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.encoders.clip import TwoTowers
from sfumato.encoders.text_small import TextSmall
from sfumato.networks.efficientnet import EfficientNetLite

_FEATURES = 1280


@dataclass(eq=False, repr=False)
class ClipFeatures(TwoTowers):
    """A text tower and an image tower that meet in one space, of few pictures learnt.

        similarity = s · cos(image, text),  s = exp(logit_scale) ≤ most

    The image tower is EfficientNet-Lite0 as ImageNet taught it, frozen, and a head of two layers; the text
    tower a small transformer, whose mean state goes through another. The frozen network is that of its
    package and is not saved.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
    arXiv:2103.00020, section 2.3; frozen image towers as in Zhai et al. 2022, "LiT", arXiv:2111.07991.

    Args:
        text: the text transformer.
        projection: D, length of the vectors.
        hidden: of the heads.
        size: side that pictures are brought to before the frozen network sees them.
        dropout: in the heads, while they learn.
        frozen: the text transformer stays as it is, and only its head learns.
        most: what the scale is kept below; of few pictures a lower one overfits less.

    Raises:
        InvalidInput: a size that the network halves to nothing, or a highest scale that is not from 1 to 100.
    """

    text: TextSmall
    projection: int = 256
    hidden: int = 512
    size: int = 96
    dropout: float = 0.2
    frozen: bool = False
    most: float = 100.0

    def __new__(cls, *args: Any, **kwargs: Any) -> ClipFeatures:
        # A module must be set up before it is given others, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        if self.size < 32:
            raise InvalidInput(f"the network halves a picture five times; size {self.size} is below 32")
        if not 1 <= self.most <= 100:
            raise InvalidInput(f"{self.most} is not from 1 to 100", where="clip_features.most")
        if self.frozen:
            self.text.requires_grad_(False)
        self.image_head = self._head(_FEATURES)
        self.text_head = self._head(self.text.width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # In a tuple it is no child: neither saved nor trained.
        self._frozen: tuple[EfficientNetLite, ...] = ()

    def texts(self, said: Sequence[str]) -> Tensor:
        """Captions → (B, D) of length 1."""
        ids, real = self.text.lay(said)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            mean = self.text.pool(self.text(ids, real), real)
        return F.normalize(self.text_head(mean).float(), dim=-1)

    def images(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → (B, D) of length 1."""
        return F.normalize(self.image_head(self.features(x)).float(), dim=-1)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → what the frozen network says of them, (B, 1280)."""
        if not self._frozen:
            with torch.device("cpu"):
                self._frozen = (EfficientNetLite.pretrained(),)
        trunk = self._frozen[0].to(image.device)
        return trunk.pooled(trunk.prepare((image.float() + 1) * 127.5, self.size))

    def _head(self, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, self.hidden),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, self.projection),
        )
