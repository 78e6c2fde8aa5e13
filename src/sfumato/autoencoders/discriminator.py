"""PatchGAN: tells pictures from reconstructions, patch by patch, to train autoencoders against."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput


class PatchGAN(nn.Module):
    """A few strided convolutions that say of each patch of a picture how real it looks.

    With three layers a logit sees 70 x 70 pixels, and 256 x 256 pixels have 30 x 30 logits. Convolutions
    start at N(0, .02), normalisation at N(1, .02). Batch normalisation always uses the batch at hand, as it
    is met in training alone.

    Isola, Zhu, Zhou & Efros 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
    arXiv:1611.07004, sections 3.2 and 6.1.2.

    Args:
        channels: of the pictures.
        width: features after the first layer; they double to eight times that.
        layers: that halve the size, 3 in the paper and 2 for the published f8 and f16 with codebooks.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if min(channels, width, layers) < 1:
            raise InvalidInput("channels, width and layers are whole numbers from 1", where="discriminator")
        self.layers = layers
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        here = width
        for number in range(1, layers + 1):
            there = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            parts += [nn.Conv2d(here, there, 4, stride, 1, bias=False)]
            parts += [nn.BatchNorm2d(there, track_running_stats=False), nn.LeakyReLU(0.2)]
            here = there
        parts.append(nn.Conv2d(here, 1, 4, 1, 1))
        self.main = nn.Sequential(*parts)
        for part in parts:
            if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
                nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), 0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) in [-1, 1] → logits (B, 1, h, w), higher for real."""
        least = 2 ** (self.layers + 2)
        if min(image.shape[2:]) < least:
            raise InvalidInput(
                f"{self.layers} layers need pictures of {least} pixels or more, got {tuple(image.shape)}",
                where="discriminator",
                do="use fewer layers",
            )
        return cast(Tensor, self.main(image))

    def frozen(self, image: Tensor) -> Tensor:
        """As a call, with gradients for the picture and none for the weights: the other player's view."""
        held = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return cast(Tensor, torch.func.functional_call(self, held, (image,)))
