"""The U-Net of latent diffusion and of Stable Diffusion 1, 2 and XL: text is attended to at every size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfumato.core.errors import look_up
from sfumato.core.hooks import name_sites
from sfumato.networks.layers.sd_encoder import SDEncoder
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
class SDUNet(SDEncoder, UNet):
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
        out_channels: of what comes out.

    Raises:
        InvalidInput: settings that fit no network, or a condition that does not fit this one.
    """

    out_channels: int = 4

    @staticmethod
    def published(name: str) -> SDUNet:
        """A network with the settings of published weights, by a name of PUBLISHED such as "sdxl"."""
        return SDUNet(**look_up(PUBLISHED, name, "published U-Net"))

    def __post_init__(self) -> None:
        self.check()
        UNet.__init__(self, self.classes)
        self.tell()
        name_sites(self)
