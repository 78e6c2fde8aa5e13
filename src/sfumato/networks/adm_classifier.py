"""ADM's noisy classifier: the half of the U-Net that goes down, and a pool."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.hooks import Context, Site, name_sites
from sfumato.networks.layers.attention import attend
from sfumato.networks.layers.encoder import Encoder
from sfumato.networks.layers.normalization import GroupNorm, zeroed

PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet_64": {"size": 64, "multipliers": (1, 2, 3, 4), "blocks": 4, "attention": (2, 4, 8)},
    "imagenet_128": {"size": 128, "multipliers": (1, 1, 2, 3, 4), "attention": (4, 8, 16)},
    "imagenet_256": {"size": 256, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (8, 16, 32)},
    "imagenet_512": {"size": 512, "multipliers": (0.5, 1, 1, 2, 2, 4, 4), "attention": (16, 32, 64)},
}
"""What differs between the published classifiers of guided diffusion."""


class AttentionPool(nn.Module):
    """A feature map as one vector: its mean, after it has attended to every place.

    The mean stands as a token before the places, learnt positions are added, and what the mean gathers is
    projected.

    Radford et al. 2021 (CLIP), arXiv:2103.00020; as in guided diffusion, without normalisation.

    Args:
        side: of the map, (B, channels, side, side).
        channels: of it.
        heads: of the attention.
        out_channels: of the vector.
    """

    def __init__(self, side: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.site = Site("", "self")
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / math.sqrt(channels))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """(B, channels, side, side) → (B, out_channels)."""
        flat = h.flatten(2)
        tokens = torch.cat((flat.mean(dim=2, keepdim=True), flat), dim=2)
        tokens = self.qkv_proj(tokens + self.positional_embedding.to(tokens))
        split = tokens.view(len(h), 3, self.heads, -1, tokens.shape[2]).transpose(-1, -2)
        q, k, v = (part.contiguous() for part in split.unbind(1))
        # What the other tokens gather is used by nobody.
        gathered = attend(self.site, context, q[:, :, :1], k, v)
        return self.c_proj(gathered.flatten(1)[:, :, None])[:, :, 0]


@dataclass(eq=False, repr=False)
class ADMClassifier(Encoder):
    """Encoder half of ADM's U-Net with attention pooling: which class, seen through noise.

    forward(x (B, in_channels, size, size), time (B,), condition) → logits (B, classes). Told nothing but the
    time, and `channels` if in_channels says so. State-dict names are those of the published guided-diffusion
    classifiers.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, section 4 and
    appendix I, table 14.

    Args:
        in_channels: of x.
        classes: how many.
        size: height and width of x; divides by 2^(levels - 1).
        channels: of the first level.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the
            map.
        blocks: residual blocks a level.
        attention: downsampling factors at which blocks are followed by attention.
        head_channels: channels a head, of attention and pool.
        dropout: in the residual blocks.
        scale_shift: the embedding scales and shifts rather than being added.
        resblock_updown: halve by residual blocks rather than by convolutions.
        new_attention_order: layout of the attention's weights, not of the pool's.
        pool: "attention", or "adaptive": the mean, for maps of any size.

    Raises:
        InvalidInput: a size that the levels do not halve evenly, or x of another size.
    """

    in_channels: int = 3
    classes: int = 10
    size: int = 32
    channels: int = 64
    multipliers: tuple[float, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (2, 4)
    head_channels: int = 64
    dropout: float = 0.0
    scale_shift: bool = True
    resblock_updown: bool = True
    new_attention_order: bool = False
    pool: Literal["attention", "adaptive"] = "attention"

    @staticmethod
    def published(name: str) -> ADMClassifier:
        """A network with the settings of published weights, by a name of PUBLISHED such as "imagenet_64"."""
        own = look_up(PUBLISHED, name, "published classifier")
        return ADMClassifier(**{"classes": 1000, "channels": 128, "blocks": 2, **own})

    def __post_init__(self) -> None:
        side, rest = divmod(self.size, 2 ** (len(self.multipliers) - 1))
        if rest:
            raise InvalidInput(
                f"{self.size} cannot be halved {len(self.multipliers) - 1} times", where="adm_classifier.size"
            )
        super().__init__()
        here = self.widths[-1]
        start = [GroupNorm(here, self.eps), nn.SiLU()]
        if self.pool == "attention":
            if here % self.head_channels:
                raise InvalidInput(
                    f"{here} channels do not fall into heads of {self.head_channels}",
                    where="adm_classifier.head_channels",
                )
            pool = AttentionPool(side, here, here // self.head_channels, self.classes)
            self.out = nn.Sequential(*start, pool)
        else:
            last = zeroed(nn.Conv2d(here, self.classes, 1))
            self.out = nn.Sequential(*start, nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, size, size) at time (B,) → logits (B, classes)."""
        if self.pool == "attention" and x.shape[2:] != (self.size, self.size):
            shape = " x ".join(map(str, x.shape[2:]))
            raise InvalidInput(f"a map of {shape} for a classifier of {self.size} x {self.size}", where="x")
        h, _, context = self.encode(x, time, condition)
        for layer in self.out:
            h = layer(h, context) if isinstance(layer, AttentionPool) else layer(h)
        return h
