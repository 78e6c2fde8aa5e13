"""Dequantisation: from 8-bit pictures to numbers a density can speak of, and back to bits."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise


class Dequantized(NamedTuple):
    """Bytes made continuous.

    Args:
        x: (B, C, ..) in [-1, 1], x = (byte + u) / 128 - 1 with u in [0, 1].
        log_q: log density of u given the bytes, (B,), in nats.
    """

    x: Tensor
    log_q: Tensor


class Dequantizer(Protocol):
    """Draws the place u inside each byte's bin: (bytes (B, C, ..) as floats, noise) → Dequantized."""

    def __call__(self, levels: Tensor, noise: Noise) -> Dequantized: ...


@dataclass(frozen=True)
class Uniform:
    """Any place in the bin alike: (byte + u) / 256 with u uniform, then to [-1, 1].

    Theis, van den Oord & Bethge 2016, "A note on the evaluation of generative models", arXiv:1511.01844: the
    likelihood of the result is at most that of the bytes.
    """

    def __call__(self, levels: Tensor, noise: Noise) -> Dequantized:
        u = noise.uniform(levels.shape, "dequantize").to(levels)
        return Dequantized(_placed(levels, u), levels.new_zeros(len(levels)))


@dataclass(eq=False, repr=False)
class Variational(nn.Module):
    """A learned density of the place in the bin, for a tighter bound than uniform dequantisation's.

        log P(bytes) >= E_q [ log p(x) - log q(u | bytes) ] - D log 128,   u = sigmoid(m + s · logit(r))

    with r uniform, and m and log s from a small convolutional network that sees the eight bits of every byte
    around. Fresh, m = log s = 0: u = r, the uniform law.

    Ho, Chen, Srinivas, Duan & Abbeel 2019, "Flow++", arXiv:1902.00275, section 3.1, with one logistic in
    place of their coupling layers.

    Args:
        channels: of the pictures.
        width: channels of the network.
        depth: layers of 3 x 3 convolutions before the last.
    """

    channels: int = 3
    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        super().__init__()
        if self.channels < 1 or self.width < 1 or self.depth < 1:
            raise InvalidInput("channels, width and depth must be at least 1", where="dequantizer")
        sizes = [8 * self.channels, *[self.width] * self.depth]
        layers = [
            part
            for here, there in itertools.pairwise(sizes)
            for part in (nn.Conv2d(here, there, 3, padding=1), nn.SiLU())
        ]
        last = nn.Conv2d(self.width, 2 * self.channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.network = nn.Sequential(*layers, last)

    def forward(self, levels: Tensor, noise: Noise) -> Dequantized:
        """Bytes (B, C, H, W) as floats → Dequantized."""
        if levels.shape[1] != self.channels:
            raise InvalidInput(
                f"{levels.shape[1]} channels where the dequantizer has {self.channels}", where="dequantizer"
            )
        # A byte as one number would hide the next byte's difference behind the picture's contrast.
        powers = 2.0 ** torch.arange(8, device=levels.device)
        bits = torch.floor(levels[:, :, None] / powers.to(levels)[:, None, None]) % 2
        mean, log_scale = self.network(2 * bits.flatten(1, 2) - 1).chunk(2, dim=1)
        r = noise.uniform(levels.shape, "dequantize").to(levels.device)
        # float32 would round the ends of the interval to infinity.
        start = torch.logit(r)
        z = mean.double() + log_scale.double().exp() * start
        log_q = F.logsigmoid(start) + F.logsigmoid(-start) - log_scale - F.logsigmoid(z) - F.logsigmoid(-z)
        return Dequantized(_placed(levels, torch.sigmoid(z).to(levels)), log_q.flatten(1).sum(1).to(levels))


def to_levels(image: Tensor) -> Tensor:
    """Pictures in [-1, 1] to their bytes 0 .. 255, as floats of the same shape.

    Raises:
        InvalidInput: they are no 8-bit pictures.
    """
    exact = (image + 1) * 127.5
    levels = exact.round()
    if bool(((levels - exact).abs() > 0.02).any()) or bool(((levels < 0) | (levels > 255)).any()):
        raise InvalidInput(
            "bits a dimension are of 8-bit pictures, and these hold other values", where="image"
        )
    return levels


def bits_of_bytes(log_density: Tensor, size: int) -> Tensor:
    """Bits a dimension of bytes from a log density of their dequantised [-1, 1] picture, less log q.

    Args:
        log_density: log p(x) - log q(u), (B,), in nats.
        size: dimensions of a picture. A bin is 1/128 wide: that is 7 bits each.
    """
    return 7 - log_density / (size * math.log(2))


def _placed(levels: Tensor, u: Tensor) -> Tensor:
    return (levels + u) / 128 - 1
