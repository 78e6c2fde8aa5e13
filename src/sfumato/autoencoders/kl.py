"""KL: the autoencoder of latent diffusion with a Gaussian posterior, Stable Diffusion's among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoders.blocks import Decoder, Encoder, check_image, check_latents, check_settings
from sfumato.core.autoencoder import Precision
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.posterior import Posterior

PUBLISHED: dict[str, dict[str, Any]] = {
    "f4": {"channels": 3, "multipliers": (1, 2, 4)},
    "f8": {},
    "f16": {"channels": 16, "multipliers": (1, 1, 2, 2, 4), "attention": (16,)},
    "f32": {"channels": 64, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (16, 32)},
    "f8_16": {"channels": 16, "quant_convs": False},
}
"""Settings of published weights: latent diffusion's by factor (f8 is Stable Diffusion's 1, 2 and XL's), and
the 16 channels of Stable Diffusion 3 and Flux."""


@dataclass(eq=False, repr=False)
class KL(nn.Module):
    """Autoencoder whose latents are Gaussian given the picture, drawn to the standard normal in training.

        moments = quant_conv(encoder(image)),    image ≈ decoder(post_quant_conv(z))

    The defaults are Stable Diffusion's (83,653,863 parameters). State-dict names are latent diffusion's:
    encoder.down.0.block.0.norm1.weight, .., quant_conv.weight.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    section 3.1 and appendix G.

    Args:
        channels: of the latents.
        width: channels of the finest resolution, in units of its multiplier.
        multipliers: channels of each resolution in units of `width`; each after the first halves the size.
        blocks: residual blocks a resolution; the decoder has one more.
        attention: downsampling factors at which blocks are followed by attention.
        mid_attention: whether the middle attends.
        quant_convs: convolutions of one place between the encoder, the moments and the decoder.
        in_channels: of the pictures.
        dropout: in the residual blocks.
        precision: the least numbers that pictures and latents are computed in.
        groups: of channels that are normalised together; with few channels in a group a map's level is lost,
            so widths below 128 want fewer groups: width / 4.
        pack: side of the squares of places that become one place of pack² times the channels, as Flux packs
            them: networks have fewer places to work on. `channels` and `factor` are those of what is packed.
    """

    channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    quant_convs: bool = True
    in_channels: int = 3
    dropout: float = 0.0
    precision: Precision = "float32"
    groups: int = 32
    pack: int = 1

    @staticmethod
    def published(name: str) -> KL:
        """One with the settings of published weights, by a name of PUBLISHED such as "f8"."""
        return KL(**look_up(PUBLISHED, name, "published autoencoder"))

    def __post_init__(self) -> None:
        super().__init__()
        check_settings(
            "kl", self.channels, self.width, self.multipliers, self.blocks, self.attention, self.groups
        )
        if self.pack < 1 or self.channels % self.pack**2:
            raise InvalidInput(f"{self.channels} channels are not packed by {self.pack}", where="kl.pack")
        widths = [self.width * multiplier for multiplier in self.multipliers]
        loose = self.channels // self.pack**2
        two, rest = 2 * loose, (self.attention, self.mid_attention, self.groups, self.dropout)
        self.encoder = Encoder(self.in_channels, two, widths, self.blocks, *rest)
        self.decoder = Decoder(loose, self.in_channels, widths, self.blocks + 1, *rest)
        self.quant_conv = nn.Conv2d(two, two, 1) if self.quant_convs else nn.Identity()
        self.post_quant_conv = nn.Conv2d(loose, loose, 1) if self.quant_convs else nn.Identity()

    @property
    def factor(self) -> int:
        """How many pixels, along a side, make one place of the latents."""
        return self.pack * 2 ** (len(self.multipliers) - 1)

    @property
    def last_layer(self) -> Tensor:
        """The weights that draw the picture, by whose gradients losses are balanced in training."""
        return self.decoder.conv_out.weight

    def encode(self, image: Tensor) -> Posterior:
        """Pictures (B, in_channels, H, W) in [-1, 1] → the posterior of (B, channels, h, w)."""
        check_image("kl", image, self.in_channels, self.factor)
        # Means stay before log-variances, as the places of a channel become neighbours.
        return Posterior.of(F.pixel_unshuffle(self.quant_conv(self.encoder(image)), self.pack))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, channels, h, w) → pictures, not clamped."""
        check_latents("kl", z, self.channels)
        return self.decoder(self.post_quant_conv(F.pixel_shuffle(z, self.pack)))
