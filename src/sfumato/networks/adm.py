"""ADM: the U-Net of guided diffusion, which is DDPM's grown up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import NotFound, nearest
from sfumato.core.hooks import Context, name_sites
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.layers.normalization import GroupNorm, zeroed
from sfumato.networks.layers.resample import Downsample, Upsample
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.slots import joined


class Stage(nn.ModuleList):
    """Blocks run one after another; those that see the context are given it."""

    def forward(self, h: Tensor, context: Context) -> Tensor:
        for block in self:
            h = block(h, context) if isinstance(block, ResidualBlock | SpatialAttention) else block(h)
        return h


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
class ADM(nn.Module):
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
        if name not in PUBLISHED:
            raise NotFound(f"no published ADM is called {name!r}", where="name", do=nearest(name, PUBLISHED))
        return ADM(**PUBLISHED[name])

    def __post_init__(self) -> None:
        super().__init__()
        width = 4 * self.channels
        self.time_embed = nn.Sequential(nn.Linear(self.channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = nn.Embedding(self.classes, width) if self.classes else None
        here = first = int(self.multipliers[0] * self.channels)
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(self.in_channels, here, 3, padding=1)])])
        skips, factor, last = [here], 1, len(self.multipliers) - 1
        for number, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                there = int(multiplier * self.channels)
                self.input_blocks.append(Stage([self._block(here, there), *self._attention(there, factor)]))
                here = there
                skips.append(here)
            if number != last:
                down = Downsample(here, lopsided=self.original)
                self.input_blocks.append(
                    Stage([self._block(here, here, "down") if self.resblock_updown else down])
                )
                skips.append(here)
                factor *= 2
        self.middle_block = Stage(
            [self._block(here, here), *self._attention(here, None), self._block(here, here)]
        )
        self.output_blocks = nn.ModuleList()
        for number, multiplier in reversed(list(enumerate(self.multipliers))):
            for place in range(self.blocks + 1):
                there = int(multiplier * self.channels)
                stage = Stage([self._block(here + skips.pop(), there), *self._attention(there, factor)])
                here = there
                if number and place == self.blocks:
                    stage.append(self._block(here, here, "up") if self.resblock_updown else Upsample(here))
                    factor //= 2
                self.output_blocks.append(stage)
        out = zeroed(nn.Conv2d(first, self.out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(here, self._eps), nn.SiLU(), out)
        if self.original:
            self._initialise()
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition → (B, out_channels, H, W)."""
        x = joined(
            x,
            condition,
            in_channels=self.in_channels,
            multiple=2 ** (len(self.multipliers) - 1),
            classes=self.classes,
            tokens=self.tokens,
            residuals=len(self.input_blocks) + 1,
        )
        dtype = next(self.time_embed.parameters()).dtype
        embedding = self.time_embed(sinusoid(time, self.channels, original=self.original).to(dtype))
        if self.label_emb is not None and condition.vector is not None:
            embedding = embedding + condition.vector.to(dtype) @ self.label_emb.weight
        context = Context(embedding, condition)
        extra: Iterator[Tensor] = iter(condition.residuals)
        skips = []
        h = x.to(dtype)
        for stage in self.input_blocks:
            h = stage(h, context)
            skips.append(h)
        h = self.middle_block(h, context)
        if condition.residuals:
            skips = [skip + next(extra) for skip in skips]
            h = h + next(extra)
        for stage in self.output_blocks:
            h = stage(torch.cat((h, skips.pop()), dim=1), context)
        return self.out(h)

    @property
    def _eps(self) -> float:
        return 1e-6 if self.original else 1e-5

    def _block(self, here: int, there: int, resample: str | None = None) -> ResidualBlock:
        width = 4 * self.channels
        return ResidualBlock(here, there, width, self.dropout, self.scale_shift, resample, self._eps)  # type: ignore[arg-type]

    def _attention(self, channels: int, factor: int | None) -> list[SpatialAttention]:
        """Attention where it is wanted; always in the middle (no factor)."""
        if factor is not None and factor not in self.attention:
            return []
        heads = channels // self.head_channels if self.head_channels else self.heads
        return [SpatialAttention(channels, heads, self.new_attention_order, self.tokens, self._eps)]

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
