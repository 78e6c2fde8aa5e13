"""The convolutional encoder and decoder of latent diffusion, which its KL and VQ autoencoders share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise, repeat

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.networks.layers.attention import softmax_attention
from sfumato.networks.layers.normalization import GroupNorm, NormSiLU

_EPS = 1e-6


class ResnetBlock(nn.Module):
    """Two convolutions, each after group norm and swish, added to the input; it knows no time.

    Args:
        channels: of the map that comes.
        out_channels: of the map that goes; where they differ the input is projected.
        groups: of channels that are normalised together.
        dropout: before the second convolution.
    """

    def __init__(self, channels: int, out_channels: int, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = NormSiLU(channels, _EPS, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels, _EPS, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, channels, H, W) → (B, out_channels, H, W)."""
        inner = self.conv1(self.norm1(h))
        inner = self.conv2(self.dropout(self.norm2(inner)))
        return self.nin_shortcut(h) + inner


class AttnBlock(nn.Module):
    """Every place attends to every other, with one head of all the channels; added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, _EPS, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        inner = self.norm(h)
        q, k, v = (
            layer(inner).flatten(2).transpose(1, 2)[:, None].contiguous()
            for layer in (self.q, self.k, self.v)
        )
        out = softmax_attention(q, k, v)
        return h + self.proj_out(out[:, 0].transpose(1, 2).reshape(h.shape))


class Downsample(nn.Module):
    """Half the size by a convolution, padded at the right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(h, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size, every value four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class Blocks(nn.Module):
    """Residual blocks of one resolution, each followed by attention where it is wanted."""

    def __init__(
        self, here: int, there: int, count: int, attention: bool, groups: int, dropout: float
    ) -> None:
        super().__init__()
        # No list: a count may be anybody's, and is held against its weights only once this stands.
        widths = chain((here,), repeat(there, count))
        self.block = nn.ModuleList(ResnetBlock(a, b, groups, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(there, groups) for _ in range(count if attention else 0))

    def forward(self, h: Tensor) -> Tensor:
        """(B, here, H, W) → (B, there, H, W), before any resampling."""
        for number, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[number](h)
        return h


class Down(Blocks):
    """One resolution of the encoder, and the way to the next."""

    def __init__(
        self, here: int, there: int, count: int, attention: bool, groups: int, dropout: float, last: bool
    ) -> None:
        super().__init__(here, there, count, attention, groups, dropout)
        self.downsample = nn.Identity() if last else Downsample(there)

    def forward(self, h: Tensor) -> Tensor:
        """(B, here, H, W) → (B, there, H / 2, W / 2), or of the same size on the last."""
        return self.downsample(super().forward(h))


class Up(Blocks):
    """One resolution of the decoder, and the way to the next finer."""

    def __init__(
        self, here: int, there: int, count: int, attention: bool, groups: int, dropout: float, last: bool
    ) -> None:
        super().__init__(here, there, count, attention, groups, dropout)
        self.upsample = nn.Identity() if last else Upsample(there)

    def forward(self, h: Tensor) -> Tensor:
        """(B, here, H, W) → (B, there, 2H, 2W), or of the same size on the last."""
        return self.upsample(super().forward(h))


class Middle(nn.Module):
    """Residual block, attention unless there shall be none, residual block."""

    def __init__(self, channels: int, attention: bool, groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups, dropout)
        self.attn_1 = AttnBlock(channels, groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, groups, dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """Pictures to features of 1 / 2^(levels - 1) their size.

    Args:
        in_channels: of the pictures.
        out_channels: of the features.
        widths: channels of each resolution, the finest first.
        blocks: residual blocks a resolution.
        attention: downsampling factors at which they are followed by attention.
        mid_attention: whether the middle attends.
        groups: of channels that are normalised together.
        dropout: in the residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        mid_attention: bool,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, here := widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, there in enumerate(widths):
            last = level == len(widths) - 1
            self.down.append(Down(here, there, blocks, 2**level in attention, groups, dropout, last))
            here = there
        self.mid = Middle(here, mid_attention, groups, dropout)
        self.norm_out = NormSiLU(here, _EPS, groups)
        self.conv_out = nn.Conv2d(here, out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / factor, W / factor)."""
        h = self.conv_in(image)
        for down in self.down:
            h = down(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    """Features to pictures of 2^(levels - 1) their size; `up` is numbered by resolution, the finest 0.

    Args:
        in_channels: of the features.
        out_channels: of the pictures.
        widths: channels of each resolution, the finest first.
        blocks: residual blocks a resolution.
        attention: downsampling factors at which they are followed by attention.
        mid_attention: whether the middle attends.
        groups: of channels that are normalised together.
        dropout: in the residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        mid_attention: bool,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, here := widths[-1], 3, padding=1)
        self.mid = Middle(here, mid_attention, groups, dropout)
        ups = []
        for level, there in reversed(list(enumerate(widths))):
            ups.append(Up(here, there, blocks, 2**level in attention, groups, dropout, level == 0))
            here = there
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out = NormSiLU(here, _EPS, groups)
        self.conv_out = nn.Conv2d(here, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, h · factor, w · factor)."""
        h = self.mid(self.conv_in(z))
        for up in reversed(self.up):
            h = up(h)
        return self.conv_out(self.norm_out(h))


def check_settings(
    name: str,
    channels: int,
    width: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    groups: int,
) -> None:
    """Refuse settings that make no autoencoder."""
    if min(channels, width, blocks, groups, *multipliers, 1) < 1 or not multipliers:
        raise InvalidInput(
            "channels, width, multipliers, blocks and groups are whole numbers from 1", where=name
        )
    factors = [2**level for level in range(len(multipliers))]
    if unknown := sorted(set(attention) - set(factors)):
        raise InvalidInput(
            f"no resolution is smaller by {unknown[0]}",
            where=f"{name}.attention",
            do=f"choose among {', '.join(map(str, factors))}",
        )


def check_image(name: str, image: Tensor, channels: int, factor: int) -> None:
    """Refuse pictures that an encoder cannot take."""
    if (
        image.ndim != 4
        or image.shape[1] != channels
        or any(side % factor or not side for side in image.shape[2:])
    ):
        raise InvalidInput(
            f"takes (B, {channels}, H, W) with sides that divide by {factor}, got {tuple(image.shape)}",
            where=name,
        )


def check_latents(name: str, z: Tensor, channels: int) -> None:
    """Refuse latents that a decoder cannot take."""
    if z.ndim != 4 or z.shape[1] != channels:
        raise InvalidInput(f"decodes (B, {channels}, h, w), got {tuple(z.shape)}", where=name)
