"""VQ: the autoencoder of latent diffusion whose latents are words of a codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoders.blocks import Decoder, Encoder, check_image, check_latents, check_settings
from sfumato.core.autoencoder import Precision
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.noise import Noise
from sfumato.core.posterior import Posterior

_F8: dict[str, Any] = {"channels": 4, "multipliers": (1, 2, 2, 4), "attention": (8,)}
PUBLISHED: dict[str, dict[str, Any]] = {
    "f4": {},
    "f4_noattn": {"mid_attention": False},
    "f8": {**_F8, "codes": 16384},
    "f8_n256": {**_F8, "codes": 256},
    "f16": {"codes": 16384, "channels": 8, "multipliers": (1, 1, 2, 2, 4), "attention": (16,)},
}
"""Settings of the published weights of latent diffusion."""

_CHUNK = 2**24
"""Distances held at once."""


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of a map.

    Args:
        z: (B, C, h, w), the nearest codes; its gradient goes straight through to the map.
        indices: (B, h, w), which codes they are.
        loss: that draws the codes to the map and the map to the codes.
        codes: how many there are.
    """

    z: Tensor
    indices: Tensor
    loss: Tensor
    codes: int

    @property
    def shares(self) -> Tensor:
        """(codes,), how much of the batch each code stands for; they sum to 1."""
        counts = torch.bincount(self.indices.flatten(), minlength=self.codes)
        return counts.float() / self.indices.numel()

    @property
    def perplexity(self) -> Tensor:
        """exp of the entropy of the shares: how many codes, equally used, would be as varied."""
        return torch.special.entr(self.shares).sum().exp()

    @property
    def usage(self) -> Tensor:
        """Which part of the codes the batch uses at all."""
        return (self.shares > 0).float().mean()


class Codebook(nn.Module):
    """Codes, the nearest of which stands for each place of a map.

        loss = mean (sg[z] - e)² + commitment · mean (z - sg[e])²

    The published code of latent diffusion has `commitment` on the first term instead (`legacy`).

    van den Oord, Vinyals & Kavukcuoglu 2017, "Neural Discrete Representation Learning", arXiv:1711.00937,
    equation 3; codes that died are drawn anew as in Dhariwal et al. 2020, "Jukebox", arXiv:2005.00341.

    Args:
        codes: how many.
        channels: of each.
        commitment: weight of drawing the map to the codes.
        legacy: the weight stands on the other term.
        revive_after: training steps without use after which a code becomes a place of the map at hand, picked
            by the step alone; 0 for never.
    """

    steps: Tensor
    used: Tensor

    def __init__(self, codes: int, channels: int, commitment: float, legacy: bool, revive_after: int) -> None:
        super().__init__()
        self.commitment, self.legacy, self.revive_after = commitment, legacy, revive_after
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        if revive_after:
            # Saved with the weights, so that a run resumed revives what the run itself would have.
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("used", torch.zeros(codes, dtype=torch.int64))

    def forward(self, z: Tensor) -> Quantized:
        """The codes of a map (B, C, h, w); while training, codes out of use are revived first."""
        training = self.training and torch.is_grad_enabled() and self.revive_after > 0
        weight = self.embedding.weight
        flat = z.detach().permute(0, 2, 3, 1).flatten(0, 2).to(weight.dtype)
        if training:
            self._revive(flat)
        indices = self._nearest(flat)
        if training:
            self.used[indices] = self.steps
        indices = indices.view(z.shape[0], *z.shape[2:])
        e = self.look_up(indices)
        book, commit = F.mse_loss(e, z.detach().to(e)), F.mse_loss(z.to(e), e.detach())
        loss = commit + self.commitment * book if self.legacy else book + self.commitment * commit
        return Quantized(z + (e.to(z) - z).detach(), indices, loss, len(weight))

    def look_up(self, indices: Tensor) -> Tensor:
        """The codes (B, C, h, w) of indices (B, h, w)."""
        return self.embedding(indices).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _nearest(self, flat: Tensor) -> Tensor:
        """Index (N,) of the code nearest to each row (N, C)."""
        with torch.autocast("cpu" if flat.is_meta else flat.device.type, enabled=False):
            # ‖z - e‖² without ‖z‖², which is the same for all codes and would swamp their differences.
            wide = torch.promote_types(flat.dtype, torch.float32)
            codes = self.embedding.weight.to(wide)
            norms = codes.square().sum(1)
            rows = max(_CHUNK // len(codes), 1)
            found = [
                torch.addmm(norms, c.to(wide), codes.T, alpha=-2).argmin(1) for c in torch.split(flat, rows)
            ]
        return torch.cat(found)

    @torch.no_grad()
    def _revive(self, flat: Tensor) -> None:
        """Count a step, and put rows of the map in the place of codes long out of use."""
        self.steps += 1
        dead = (self.steps - self.used > self.revive_after).nonzero()[:, 0]
        if len(dead) == 0:
            return
        order = Noise([0], int(self.steps)).uniform((1, len(flat)), "revive")[0].argsort()
        dead = dead[: len(flat)]
        self.embedding.weight[dead] = flat[order[: len(dead)].to(flat.device)]
        self.used[dead] = self.steps


@dataclass(eq=False, repr=False)
class VQ(nn.Module):
    """Autoencoder whose decoder first replaces each place of the latents by the nearest of its codes.

        z = quant_conv(encoder(image)),    image ≈ decoder(post_quant_conv(nearest code of z))

    Diffusion works on z before it is quantised. The defaults are the published f4 (55,322,782 parameters).
    State-dict names are latent diffusion's; `quantize.steps` and `quantize.used` exist only with revival.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752;
    Esser, Rombach & Ommer 2021, "Taming Transformers", arXiv:2012.09841.

    Args:
        codes: how many.
        channels: of the latents and the codes.
        width: channels of the finest resolution, in units of its multiplier.
        multipliers: channels of each resolution in units of `width`; each after the first halves the size.
        blocks: residual blocks a resolution; the decoder has one more.
        attention: downsampling factors at which blocks are followed by attention.
        mid_attention: whether the middle attends.
        commitment: weight of drawing latents to their codes.
        legacy: the loss with that weight on the other term, as published weights were trained.
        revive_after: training steps without use after which a code is drawn anew; 0 for never.
        in_channels: of the pictures.
        dropout: in the residual blocks.
        precision: the least numbers that pictures and latents are computed in.
        groups: of channels that are normalised together; with few channels in a group a map's level is lost,
            so widths below 128 want fewer groups: width / 4.
    """

    codes: int = 8192
    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    commitment: float = 0.25
    legacy: bool = False
    revive_after: int = 0
    in_channels: int = 3
    dropout: float = 0.0
    precision: Precision = "float32"
    groups: int = 32

    @staticmethod
    def published(name: str) -> VQ:
        """One with the settings of published weights, by a name of PUBLISHED such as "f8_n256"."""
        return VQ(**look_up(PUBLISHED, name, "published autoencoder"))

    def __post_init__(self) -> None:
        super().__init__()
        check_settings(
            "vq", self.channels, self.width, self.multipliers, self.blocks, self.attention, self.groups
        )
        if self.codes < 1 or self.revive_after < 0:
            raise InvalidInput("codes are 1 or more, steps until revival 0 or more", where="vq")
        widths = [self.width * multiplier for multiplier in self.multipliers]
        rest = (self.attention, self.mid_attention, self.groups, self.dropout)
        self.encoder = Encoder(self.in_channels, self.channels, widths, self.blocks, *rest)
        self.decoder = Decoder(self.channels, self.in_channels, widths, self.blocks + 1, *rest)
        self.quantize = Codebook(self.codes, self.channels, self.commitment, self.legacy, self.revive_after)
        self.quant_conv = nn.Conv2d(self.channels, self.channels, 1)
        self.post_quant_conv = nn.Conv2d(self.channels, self.channels, 1)

    @property
    def factor(self) -> int:
        """How many pixels, along a side, make one place of the latents."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def last_layer(self) -> Tensor:
        """The weights that draw the picture, by whose gradients losses are balanced in training."""
        return self.decoder.conv_out.weight

    def encode(self, image: Tensor) -> Posterior:
        """Pictures (B, in_channels, H, W) in [-1, 1] → (B, channels, h, w) before it is quantised."""
        check_image("vq", image, self.in_channels, self.factor)
        return Posterior(self.quant_conv(self.encoder(image)))

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """Latents (B, channels, h, w) → pictures, not clamped.

        Args:
            z: latents.
            quantize: replace them by their codes first; False where they are codes already.
        """
        check_latents("vq", z, self.channels)
        return self.decoder(self.post_quant_conv(self.quantize(z).z if quantize else z))

    def decode_codes(self, indices: Tensor) -> Tensor:
        """Pictures of a grid (B, h, w) of codes by their numbers."""
        return self.decode(self.quantize.look_up(indices), quantize=False)
