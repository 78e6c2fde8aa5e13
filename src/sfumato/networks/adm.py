"""ADM: the U-Net of guided diffusion, which is DDPM's grown up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sfumato.core.errors import look_up
from sfumato.core.hooks import name_sites
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.normalization import zeroed
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.unet import UNet

_LEARNED: dict[str, Any] = {"out_channels": 6, "scale_shift": True}
_GUIDED = {**_LEARNED, "channels": 256, "head_channels": 64, "resblock_updown": True}
_IMPROVED = {**_LEARNED, "blocks": 3, "heads": 4}
_64, _128, _256, _512 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)
_UP = {**_GUIDED, "in_channels": 6, "channels": 192, "classes": 1000}

PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet_64": {
        **_GUIDED,
        "channels": 192,
        "multipliers": _64,
        "blocks": 3,
        "attention": (2, 4, 8),
        "dropout": 0.1,
        "classes": 1000,
        "new_attention_order": True,
    },
    "imagenet_128": {
        **_GUIDED,
        "multipliers": _128,
        "attention": (4, 8, 16),
        "heads": 4,
        "head_channels": 0,
        "classes": 1000,
    },
    "imagenet_256": {**_GUIDED, "multipliers": _256, "attention": (8, 16, 32), "classes": 1000},
    "imagenet_256_unconditional": {**_GUIDED, "multipliers": _256, "attention": (8, 16, 32)},
    "lsun_256": {**_GUIDED, "multipliers": _256, "attention": (8, 16, 32), "dropout": 0.1},
    "imagenet_512": {**_GUIDED, "multipliers": _512, "attention": (16, 32, 64), "classes": 1000},
    "imagenet_64_to_256": {
        **_UP,
        "multipliers": _256,
        "attention": (8, 16, 32),
        "heads": 4,
        "head_channels": 0,
    },
    # The published script gives 512 pixels the multipliers of 256 here, unlike in imagenet_512.
    "imagenet_128_to_512": {**_UP, "multipliers": _256, "attention": (16, 32)},
    "improved_cifar": {**_IMPROVED, "attention": (2, 4), "dropout": 0.3},
    "improved_imagenet_64": {**_IMPROVED, "multipliers": _64, "attention": (4, 8)},
    "improved_imagenet_64_classes": {
        **_IMPROVED,
        "channels": 192,
        "multipliers": _64,
        "attention": (4, 8),
        "classes": 1000,
    },
    "improved_lsun_256": {"out_channels": 6, "multipliers": _256, "attention": (16,)},
    "ddpm_cifar": {"dropout": 0.1, "original": True},
    "ddpm_256": {"multipliers": _256, "attention": (16,), "original": True},
}
"""Settings of the published networks: of guided diffusion (ADM), improved DDPM and DDPM."""


@dataclass(eq=False, repr=False)
class ADM(UNet):
    """U-Net of residual blocks with attention at low resolution, told time and class through its embedding.

    forward(x (B, in_channels, H, W), time (B,), condition) → (B, out_channels, H, W); H and W divide by
    2^(levels - 1). Condition slots: `vector` (B, classes), one-hot rows or mixtures of classes, zeros for
    none; `channels`, concatenated to x; `tokens` (B, L, tokens), attended to; `residuals`, added to the skip
    connections in the order they are made and last to the middle (ControlNet). State-dict names are those of
    the published guided-diffusion weights, save that DDPM's three projections are one.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233; with
    `original`, Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239.

    Args:
        in_channels: of x, with the condition's channels.
        out_channels: of what comes out; twice x's for learned variance.
        channels: of the first level.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the
            map.
        blocks: residual blocks a level; the way up has one more.
        attention: downsampling factors at which blocks are followed by attention.
        heads: of attention, unless head_channels is given.
        head_channels: channels a head; 0 leaves it to `heads`.
        dropout: in the residual blocks.
        classes: length of the condition's vector; 0 for none.
        tokens: width of the condition's tokens; 0 for none.
        scale_shift: the embedding scales and shifts rather than being added.
        resblock_updown: resample by residual blocks rather than by convolutions.
        new_attention_order: layout of the attention's weights.
        original: DDPM's own sinusoids, norm epsilon, padding and initialisation.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (2,)
    heads: int = 1
    head_channels: int = 0
    dropout: float = 0.0
    classes: int = 0
    tokens: int = 0
    scale_shift: bool = False
    resblock_updown: bool = False
    new_attention_order: bool = False
    original: bool = False

    @staticmethod
    def published(name: str) -> ADM:
        """A network with the settings of published weights, by a name of PUBLISHED such as "imagenet_64"."""
        return ADM(**look_up(PUBLISHED, name, "published ADM"))

    def __post_init__(self) -> None:
        super().__init__(self.classes)
        if self.original:
            self._initialise()
        name_sites(self)

    def _initialise(self) -> None:
        """DDPM's initialisation: variance 1 / mean of fans, zero biases, outputs of blocks zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                zeroed(module.out_layers[3])
            elif isinstance(module, SpatialAttention):
                # Three projections C → C in one: the fans are C, not C and 3C.
                nn.init.uniform_(module.qkv.weight, -(bound := (3 / module.qkv.in_channels) ** 0.5), bound)
                zeroed(module.proj_out)
        zeroed(self.out[2])
