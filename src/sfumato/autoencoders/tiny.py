"""Tiny: the small, fast autoencoder TAESD, for previews and small models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.autoencoders.blocks import check_image, check_latents
from sfumato.core.autoencoder import Precision
from sfumato.core.errors import InvalidInput
from sfumato.core.posterior import Posterior


class Block(nn.Module):
    """Three convolutions with ReLU between them and after they are added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return torch.relu(self.conv(h) + h)


class Layers(nn.Module):
    """A row of layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        """One layer after another."""
        return self.layers(h)


@dataclass(eq=False, repr=False)
class Tiny(nn.Module):
    """Autoencoder of a few plain convolutions, whose latents stand at the scale diffusion works at.

    It was distilled to take and give the scaled latents of a large one (times .18215 for Stable Diffusion),
    so that its space has scale 1. No norm and no attention: what it makes of a place depends on few others,
    and pictures of any size are decoded in tiles exactly. The defaults are TAESD's; state-dict names are
    those of its conversion, encoder.layers.0.weight.

    Bohan 2023, "Tiny AutoEncoder for Stable Diffusion" (TAESD), github.com/madebyollin/taesd.

    Args:
        channels: of the latents, 16 for those of Stable Diffusion 3 and Flux.
        width: of all features.
        encoder_blocks: residual blocks of each resolution, the finest first.
        decoder_blocks: of each resolution, the coarsest first.
        in_channels: of the pictures.
        precision: the least numbers that pictures and latents are computed in.
    """

    channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    in_channels: int = 3
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.encoder_blocks) != len(self.decoder_blocks) or not self.encoder_blocks:
            raise InvalidInput("encoder and decoder have blocks of as many resolutions", where="tiny")
        width = self.width
        down: list[nn.Module] = []
        for level, count in enumerate(self.encoder_blocks):
            coarser = nn.Conv2d(width, width, 3, 2, 1, bias=False)
            down.append(coarser if level else nn.Conv2d(self.in_channels, width, 3, padding=1))
            down += [Block(width) for _ in range(count)]
        up: list[nn.Module] = [nn.Conv2d(self.channels, width, 3, padding=1), nn.ReLU()]
        for level, count in enumerate(self.decoder_blocks, 1):
            up += [Block(width) for _ in range(count)]
            if level < len(self.decoder_blocks):
                up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = Layers(*down, nn.Conv2d(width, self.channels, 3, padding=1))
        self.decoder = Layers(*up, nn.Conv2d(width, self.in_channels, 3, padding=1))

    @property
    def factor(self) -> int:
        """How many pixels, along a side, make one place of the latents."""
        return 2 ** (len(self.encoder_blocks) - 1)

    @property
    def last_layer(self) -> Tensor:
        """The weights that draw the picture, by whose gradients losses are balanced in training."""
        weight = self.decoder.layers[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def encode(self, image: Tensor) -> Posterior:
        """Pictures (B, in_channels, H, W) in [-1, 1] → their one latent (B, channels, h, w)."""
        check_image("tiny", image, self.in_channels, self.factor)
        return Posterior(self.encoder((image + 1) / 2))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, channels, h, w), softly bounded to [-3, 3] → pictures, not clamped."""
        check_latents("tiny", z, self.channels)
        return self.decoder(3 * torch.tanh(z / 3)) * 2 - 1
