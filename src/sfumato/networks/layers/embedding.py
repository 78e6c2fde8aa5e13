"""Embeddings of the time: sinusoids and random Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(time: Tensor, width: int, *, original: bool = False) -> Tensor:
    """Sinusoids of geometrically spaced frequencies, (B,) → (B, width), in float32.

    With half = width / 2: [cos(t f), sin(t f)], f_i = 10000^(-i / half), as ADM, latent diffusion and DiT
    have it; or `original`, DDPM's and NCSN++'s: [sin, cos] with f_i = 10000^(-i / (half - 1)). An odd width
    ends in a zero.

    Vaswani et al. 2017, arXiv:1706.03762; Ho, Jain & Abbeel 2020, arXiv:2006.11239.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    # In the order of the published codes: at t = 1000 another rounding of a frequency is seen in the angle.
    exponents = steps * (math.log(10000) / (half - 1)) if original else math.log(10000) * steps / half
    angles = time.float()[:, None] * torch.exp(-exponents)
    parts = (angles.sin(), angles.cos()) if original else (angles.cos(), angles.sin())
    return nn.functional.pad(torch.cat(parts, dim=1), (0, width % 2))


class Fourier(nn.Module):
    """Random Fourier features [sin(2πWt), cos(2πWt)], W ~ N(0, scale²) fixed; (B,) → (B, 2 · features).

    Tancik et al. 2020, arXiv:2006.10739; in NCSN++ of log sigma (Song et al. 2021, arXiv:2011.13456).
    """

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, time: Tensor) -> Tensor:
        angles = 2 * math.pi * time.float()[:, None] * self.W
        return torch.cat((angles.sin(), angles.cos()), dim=1)
