"""DiT: the diffusion transformer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.core.hooks import Context, name_sites
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.layers.normalization import zeroed
from sfumato.networks.layers.slots import joined
from sfumato.networks.layers.transformer import CrossAttention, TransformerBlock

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""(width, depth, heads) of the published sizes."""


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(sinusoid(time, 256).to(next(self.mlp.parameters()).dtype))


class _Labels(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, width)

    def forward(self, vector: Tensor) -> Tensor:
        return vector.to(self.embedding_table.weight.dtype) @ self.embedding_table.weight


class _Final(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = zeroed(nn.Linear(width, out))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(embedding)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(h) * (1 + scale) + shift)


@dataclass(eq=False, repr=False)
class DiT(nn.Module):
    """Transformer over patches, told time and class by adaptive layer norm whose gates start at 0
    (adaLN-Zero).

    forward(x (B, in_channels, H, W), time (B,), condition) → (B, out_channels, H, W); H and W divide by the
    patch. Positions are fixed 2-D sinusoids of whatever grid x has. Condition slots: `vector` (B, classes),
    one-hot rows of the published table, whose last row is "no class"; `channels`, concatenated to x;
    `tokens`, cross-attended. State-dict names are those of the published weights.

    Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748.

    Args:
        in_channels: of x, with the condition's channels.
        out_channels: of what comes out; twice x's for learned variance.
        patch: side of a patch.
        width: of the tokens.
        depth: blocks.
        heads: of attention.
        classes: rows of the class table, "no class" included; 0 for none.
        tokens: width of the condition's tokens; 0 for none.
    """

    in_channels: int = 4
    out_channels: int = 8
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 0
    tokens: int = 0

    @staticmethod
    def published(size: str, patch: int = 2, classes: int = 1001) -> DiT:
        """DiT-S, B, L or XL on 4-channel latents with learned variance, as published: "XL", 2 is DiT-XL/2."""
        if size not in SIZES:
            raise NotFound(f"no DiT of size {size!r}", where="size", do=nearest(size, SIZES))
        width, depth, heads = SIZES[size]
        return DiT(patch=patch, width=width, depth=depth, heads=heads, classes=classes)

    def __post_init__(self) -> None:
        super().__init__()
        if self.width % 4:
            raise InvalidInput(f"{self.width} is not a multiple of 4, as positions need", where="dit.width")
        self.x_embedder = _Patches(self.in_channels, self.width, self.patch)
        self.t_embedder = _Time(self.width)
        self.y_embedder = _Labels(self.classes, self.width) if self.classes else None
        self.blocks = nn.ModuleList(
            TransformerBlock(self.width, self.heads, self.tokens) for _ in range(self.depth)
        )
        self.final_layer = _Final(self.width, self.patch**2 * self.out_channels)
        self._initialise()
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition → (B, out_channels, H, W)."""
        x = joined(
            x,
            condition,
            in_channels=self.in_channels,
            multiple=self.patch,
            classes=self.classes,
            tokens=self.tokens,
        )
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        h = self.x_embedder(x.to(self.x_embedder.proj.weight.dtype))
        h = h + positions(rows, columns, self.width).to(h)
        embedding = self.t_embedder(time)
        if self.y_embedder is not None and condition.vector is not None:
            embedding = embedding + self.y_embedder(condition.vector)
        context = Context(embedding, condition)
        for block in self.blocks:
            h = block(h, context)
        h = self.final_layer(h, embedding)
        # Within a patch the published layout is row, column, channel.
        return rearrange(h, "b (r c) (p q d) -> b d (r p) (c q)", r=rows, p=self.patch, q=self.patch)

    def _initialise(self) -> None:
        """Xavier for linear layers, N(0, .02²) for embeddings, zero for gates and output, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for module in self.t_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                zeroed(module.adaLN_modulation[1])
            elif isinstance(module, CrossAttention):
                zeroed(module.proj)
        zeroed(self.final_layer.adaLN_modulation[1])
        zeroed(self.final_layer.linear)


@functools.lru_cache(maxsize=32)
def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D sinusoids, (rows · columns, width) float32: half for the column, half for the row, each [sin,
    cos].

    Frequencies 10000^(-i / (width / 4)) of whole coordinates.
    """
    quarter = width // 4
    frequencies = 10000 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)

    def along(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64, device="cpu")[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    across = along(columns)[None].expand(rows, -1, -1)
    down = along(rows)[:, None].expand(-1, columns, -1)
    return torch.cat((across, down), dim=2).flatten(0, 1).float()
