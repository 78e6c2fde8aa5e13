"""CLIP's image tower: a picture to states of its patches, and to one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput, look_up
from sfumato.encoders.clip_layers import Activation, Encoded, Layers

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours, from 0 to 1, of the pictures CLIP was trained on."""

_L: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "projection": 768}

PUBLISHED: dict[str, dict[str, Any]] = {
    "clip_b32": {},
    "clip_b16": {"patch": 16},
    "clip_l14": _L,
    "clip_l14_336": {**_L, "size": 336},
    "openclip_h14": {
        "width": 1280,
        "depth": 32,
        "heads": 16,
        "patch": 14,
        "activation": "gelu",
        "projection": 1024,
    },
    "openclip_bigg14": {
        "width": 1664,
        "depth": 48,
        "heads": 16,
        "hidden": 8192,
        "patch": 14,
        "activation": "gelu",
        "projection": 1280,
    },
}
"""Settings of the published towers."""


@dataclass(eq=False, repr=False)
class ClipImage(nn.Module):
    """The image tower of CLIP: a transformer over patches and one token that stands for the whole.

    forward(x (B, 3, size, size), as `prepare` gives it) → states (B, 1 + patches, width) after the last
    layer, the token of the whole first, and pooled (B, projection): that token, normed and projected. Names
    of the weights are those of the reference implementation in transformers.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
    arXiv:2103.00020; Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929.

    Args:
        size: height and width of the picture, in pixels.
        patch: side of a patch.
        width: of the states.
        depth: layers.
        heads: of attention.
        hidden: of the feed-forward; 0 is four times the width.
        activation: quick_gelu in OpenAI's weights, gelu in OpenCLIP's.
        projection: length of the pooled vector; 0 for none.
        eps: of the layer norms.

    Raises:
        InvalidInput: a size that the patches do not fill.
    """

    size: int = 224
    patch: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 0
    activation: Activation = "quick_gelu"
    projection: int = 512
    eps: float = 1e-5

    @staticmethod
    def published(name: str) -> ClipImage:
        """A tower with the settings of published weights, by a name of PUBLISHED such as "clip_l14"."""
        return ClipImage(**look_up(PUBLISHED, name, "published tower"))

    def __post_init__(self) -> None:
        super().__init__()
        if self.patch < 1 or self.size < self.patch or self.size % self.patch:
            raise InvalidInput(f"{self.size} pixels in patches of {self.patch}", where="clip_image.size")
        self.vision_model = nn.ModuleDict(
            {
                "embeddings": _Embeddings(self.size, self.patch, self.width),
                "pre_layrnorm": nn.LayerNorm(self.width, eps=self.eps),
                "encoder": Layers(
                    self.width, self.depth, self.heads, self.hidden, self.activation, False, self.eps
                ),
                "post_layernorm": nn.LayerNorm(self.width, eps=self.eps),
            }
        )
        self.visual_projection = (
            nn.Linear(self.width, self.projection, bias=False) if self.projection else None
        )
        self.vision_model["encoder"].initialise()  # type: ignore[operator]
        if self.visual_projection is not None:
            nn.init.normal_(self.visual_projection.weight, std=self.width**-0.5)

    def prepare(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → (B, 3, size, size): the shorter side to size, the middle of the
        longer, and colours of mean 0 and variance 1. Gradients pass.
        """
        height, width = image.shape[-2:]
        if (height, width) != (self.size, self.size):
            scale = self.size / min(height, width)
            sides = (max(self.size, int(height * scale)), max(self.size, int(width * scale)))
            image = F.interpolate(image, sides, mode="bicubic", antialias=True).clamp(-1, 1)
            top, left = (round((side - self.size) / 2) for side in sides)
            image = image[..., top : top + self.size, left : left + self.size]
        mean, deviation = (image.new_tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
        return ((image + 1) / 2 - mean) / deviation

    def forward(self, x: Tensor) -> Encoded:
        """Prepared pictures (B, 3, size, size) → states and pooled."""
        states = self.hidden_states(x)[-1]
        pooled = self.vision_model["post_layernorm"](states[:, 0])
        return Encoded(states, pooled if self.visual_projection is None else self.visual_projection(pooled))

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Prepared pictures → states (B, 1 + patches, width) before the first layer and after each."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, self.size, self.size):
            raise InvalidInput(
                f"a batch {tuple(x.shape)} for pictures of {self.size} x {self.size}",
                where="x",
                do="prepare(image) makes them fit",
            )
        h = self.vision_model["pre_layrnorm"](self.vision_model["embeddings"](x))
        return self.vision_model["encoder"](h)


class _Embeddings(nn.Module):
    """Patches as tokens after the token of the whole, each with its place added."""

    def __init__(self, size: int, patch: int, width: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((size // patch) ** 2 + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        whole = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat((whole, patches), dim=1) + self.position_embedding.weight
