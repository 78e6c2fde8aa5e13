"""The U-Net of latent diffusion and of Stable Diffusion 1, 2 and XL: text is attended to at every size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.hooks import Context, name_sites
from sfumato.networks.layers.spatial_transformer import SpatialTransformer
from sfumato.networks.layers.unet import UNet

_SD1 = {"channels": 320, "multipliers": (1, 2, 4, 4), "attention": (1, 2, 4), "heads": 8, "tokens": 768}
_SD2 = {**_SD1, "heads": 1, "head_channels": 64, "tokens": 1024, "linear_projection": True}
_XL = {"heads": 1, "head_channels": 64, "linear_projection": True}
_LDM4: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "channels": 192,
    "multipliers": (1, 2, 3, 5),
    "attention": (2, 4, 8),
    "heads": 1,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sd1": _SD1,
    "sd1_inpaint": {**_SD1, "in_channels": 9},
    "sd2": _SD2,
    "sd2_inpaint": {**_SD2, "in_channels": 9},
    "sd2_depth": {**_SD2, "in_channels": 5},
    "sdxl": {
        **_XL,
        "channels": 320,
        "multipliers": (1, 2, 4),
        "attention": (2, 4),
        "depth": (0, 2, 10),
        "tokens": 2048,
        "vector": 2816,
    },
    "sdxl_refiner": {
        **_XL,
        "channels": 384,
        "multipliers": (1, 2, 4, 4),
        "attention": (2, 4),
        "depth": 4,
        "tokens": 1280,
        "vector": 2560,
    },
    "x4_upscaler": {
        "in_channels": 7,
        "channels": 256,
        "multipliers": (1, 2, 2, 4),
        "attention": (2, 4, 8),
        "cross_only": (2, 4),
        "heads": 8,
        "tokens": 1024,
        "linear_projection": True,
        "classes": 1000,
    },
    "ldm_text": {**_SD1, "tokens": 1280},
    "ldm_text_256": {**_LDM4, "head_channels": 32, "tokens": 640},
    "ldm_class": {**_LDM4, "tokens": 512},
    "ldm_class_8": {
        "channels": 256,
        "multipliers": (1, 2, 4),
        "attention": (1, 2, 4),
        "heads": 1,
        "head_channels": 32,
        "tokens": 512,
    },
    "ldm_layout": {
        **_LDM4,
        "channels": 128,
        "multipliers": (1, 2, 3, 4),
        "head_channels": 32,
        "depth": 3,
        "tokens": 512,
    },
    "rdm_768": {
        "in_channels": 16,
        "out_channels": 16,
        "channels": 448,
        "multipliers": (1, 2, 3, 4),
        "attention": (1, 2, 4),
        "heads": 1,
        "head_channels": 32,
        "tokens": 768,
    },
}
"""Settings of the published networks with spatial transformers; latent diffusion's others are ADMs."""


@dataclass(eq=False, repr=False)
class SDUNet(UNet):
    """U-Net of residual blocks, followed at some sizes by transformers that attend to the condition's tokens.

    forward(x (B, in_channels, H, W), time (B,), condition) → (B, out_channels, H, W); H and W divide by
    2^(levels - 1). Condition slots: `tokens` (B, L, tokens) of any length, attended to, with `mask`; said
    nothing, attention to them adds nothing. `vector`: (B, vector), added to the time embedding through two
    layers (pooled text and sizes), or (B, classes), one-hot rows of a table (noise levels). `channels`,
    concatenated to x; `residuals`, added to the skip connections in the order they are made and last to the
    middle (ControlNet). State-dict names are those of CompVis's and Stability's files.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752;
    Podell et al. 2023, "SDXL", arXiv:2307.01952.

    Args:
        in_channels: of x, with the condition's channels.
        out_channels: of what comes out.
        channels: of the first level; the time embedding has four times as many.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the
            map.
        blocks: residual blocks a level; the way up has one more.
        attention: downsampling factors at which blocks are followed by transformers; the middle always is.
        depth: transformer blocks, one number for all levels or one a level, where those of levels without
            attention do not count; the middle has the last.
        heads: of attention, unless head_channels is given.
        head_channels: channels a head; 0 leaves it to `heads`.
        tokens: width of the condition's tokens; 0 for none, when places attend to each other twice.
        linear_projection: transformers are entered and left by linear layers rather than convolutions of one
            place (Stable Diffusion 2 and XL).
        cross_only: downsampling factors at which places attend to tokens twice, and never to each other; of
            no effect without tokens.
        vector: length of the condition's vector that two layers take; 0 for none.
        classes: length of the condition's vector that rows of a table are summed by; 0 for none.
        dropout: in the residual blocks.

    Raises:
        InvalidInput: settings that fit no network, or a condition that does not fit this one.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 64
    multipliers: tuple[float, ...] = (1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (2, 4)
    depth: int | tuple[int, ...] = 1
    heads: int = 8
    head_channels: int = 0
    tokens: int = 0
    linear_projection: bool = False
    cross_only: tuple[int, ...] = ()
    vector: int = 0
    classes: int = 0
    dropout: float = 0.0

    @staticmethod
    def published(name: str) -> SDUNet:
        """A network with the settings of published weights, by a name of PUBLISHED such as "sdxl"."""
        return SDUNet(**look_up(PUBLISHED, name, "published U-Net"))

    def __post_init__(self) -> None:
        self._check()
        super().__init__(self.classes)
        if self.vector:
            width = 4 * self.channels
            layers = nn.Sequential(nn.Linear(self.vector, width), nn.SiLU(), nn.Linear(width, width))
            # Twice wrapped, for the names of the published files: label_emb.0.0 and label_emb.0.2.
            self.label_emb, self.labels = nn.Sequential(layers), self.vector
        name_sites(self)

    def encode(
        self, x: Tensor, time: Tensor, condition: Condition, residuals: int = 0
    ) -> tuple[Tensor, list[Tensor], Context]:
        """As every encoder's; raises InvalidInput if pooled text and sizes are wanted and not told."""
        if self.vector and condition.vector is None:
            raise InvalidInput(
                f"nothing is said where the network is told a vector of {self.vector}",
                where="vector",
                do="give the pooled text and the sizes, or zeros",
            )
        return super().encode(x, time, condition, residuals)

    def _label(self, vector: Tensor) -> Tensor:
        assert self.label_emb is not None
        return self.label_emb(vector) if self.vector else super()._label(vector)

    def _attention(self, channels: int, factor: int | None) -> Sequence[nn.Module]:
        """A transformer where it is wanted; always in the middle (no factor)."""
        if factor is not None and factor not in self.attention:
            return []
        level = -1 if factor is None else factor.bit_length() - 1
        heads = channels // self.head_channels if self.head_channels else self.heads
        twice = factor in self.cross_only
        return [
            SpatialTransformer(
                channels, heads, self._depths[level], self.tokens, self.linear_projection, twice
            )
        ]

    @property
    def _depths(self) -> tuple[int, ...]:
        """Transformer blocks of every level."""
        return (self.depth,) * len(self.multipliers) if isinstance(self.depth, int) else self.depth

    def _check(self) -> None:
        """Raises InvalidInput, before anything is allocated, if the settings fit no network."""
        levels = len(self.multipliers)
        if self.vector and self.classes:
            raise InvalidInput("a vector is taken by two layers or by a table, not both", where="vector")
        if len(self._depths) != levels:
            raise InvalidInput(f"{len(self._depths)} depths for {levels} levels", where="depth")
        if set(self.cross_only) - set(self.attention):
            raise InvalidInput("a factor at which nothing attends", where="cross_only")
        for number, multiplier in enumerate(self.multipliers):
            attended, middle = 2**number in self.attention, number == levels - 1
            width = int(multiplier * self.channels)
            if not attended and not middle:
                continue
            if self._depths[number] < 1:
                raise InvalidInput(f"no transformer block at factor {2**number}", where="depth")
            if width % (self.head_channels or self.heads):
                raise InvalidInput(
                    f"{width} channels do not fall into "
                    + (f"heads of {self.head_channels}" if self.head_channels else f"{self.heads} heads"),
                    where="head_channels" if self.head_channels else "heads",
                )
