"""The way down of ADM's U-Net, which its classifiers are made of too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.layers.resample import Downsample
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.slots import joined
from sfumato.networks.layers.spatial_transformer import SpatialTransformer

_TOLD = (ResidualBlock, SpatialAttention, SpatialTransformer)


class Stage(nn.ModuleList):
    """Blocks run one after another; those that see the context are given it."""

    def __init__(self, blocks: Iterable[nn.Module] = ()) -> None:
        super().__init__(blocks)
        self.site = Site("", "stage")

    def forward(self, h: Tensor, context: Context) -> Tensor:
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        for block in self:
            h = block(h, context) if isinstance(block, _TOLD) else block(h)
        return h


class Encoder(nn.Module):
    """Time embedding, stages of ever smaller maps, and the middle: a U-Net without its way up.

    A network derives from it, with these settings as its fields, and adds what it does with the features.
    Parameters are named `time_embed`, `label_emb`, `input_blocks` and `middle_block`, as published.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233.

    Args:
        labels: length of the condition's vector; 0 for none.
    """

    in_channels: int
    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int
    dropout: float
    scale_shift: bool = False
    resblock_updown: bool = False
    new_attention_order: bool = False
    heads: int = 1
    tokens: int = 0
    original: bool = False
    must_be_told: bool = False
    """Whether the condition's vector cannot be left out."""

    def __init__(self, labels: int = 0) -> None:
        super().__init__()
        width = 4 * self.channels
        self.labels = labels
        self.time_embed = nn.Sequential(nn.Linear(self.channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb: nn.Module | None = nn.Embedding(labels, width) if labels else None
        here = int(self.multipliers[0] * self.channels)
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(self.in_channels, here, 3, padding=1)])])
        self.widths = [here]
        factor, last = 1, len(self.multipliers) - 1
        for number, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                there = int(multiplier * self.channels)
                self.input_blocks.append(Stage([self._block(here, there), *self._attention(there, factor)]))
                here = there
                self.widths.append(here)
            if number != last:
                down = Downsample(here, lopsided=self.original)
                self.input_blocks.append(
                    Stage([self._block(here, here, "down") if self.resblock_updown else down])
                )
                self.widths.append(here)
                factor *= 2
        self.middle_block = Stage(
            [self._block(here, here), *self._attention(here, None), self._block(here, here)]
        )

    def encode(
        self,
        x: Tensor,
        time: Tensor,
        condition: Condition,
        residuals: int = 0,
        added: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], Context]:
        """What the middle makes of x (B, C, H, W) at time (B,), the stages' features, and the context.

        Args:
            x: (B, in_channels, H, W) with the condition's channels; H and W divide by 2^(levels - 1).
            time: (B,).
            condition: what the network is told.
            residuals: how many residuals it takes.
            added: to what the first stage makes of x, of that shape.
        """
        x = joined(
            x,
            condition,
            in_channels=self.in_channels,
            multiple=2 ** (len(self.multipliers) - 1),
            classes=self.labels,
            told=self.must_be_told,
            tokens=self.tokens,
            residuals=residuals,
        )
        dtype = next(self.time_embed.parameters()).dtype
        embedding = self.time_embed(sinusoid(time, self.channels, original=self.original).to(dtype))
        if self.label_emb is not None and condition.vector is not None:
            embedding = embedding + self._label(condition.vector.to(dtype))
        context = Context(embedding, condition)
        features: list[Tensor] = []
        h = x.to(dtype)
        for stage in self.input_blocks:
            h = stage(h, context)
            if added is not None and not features:
                h = h + added.to(h)
            features.append(h)
        return self.middle_block(h, context), features, context

    @property
    def eps(self) -> float:
        """Of the group norms."""
        return 1e-6 if self.original else 1e-5

    def _block(self, here: int, there: int, resample: str | None = None) -> ResidualBlock:
        width = 4 * self.channels
        return ResidualBlock(here, there, width, self.dropout, self.scale_shift, resample, self.eps)  # type: ignore[arg-type]

    def _label(self, vector: Tensor) -> Tensor:
        """What the condition's vector (B, labels) adds to the time embedding: its mixture of the rows."""
        assert isinstance(self.label_emb, nn.Embedding)
        return vector @ self.label_emb.weight

    def _attention(self, channels: int, factor: int | None) -> Sequence[nn.Module]:
        """Attention where it is wanted; always in the middle (no factor)."""
        if factor is not None and factor not in self.attention:
            return []
        heads = channels // self.head_channels if self.head_channels else self.heads
        return [SpatialAttention(channels, heads, self.new_attention_order, self.tokens, self.eps)]
