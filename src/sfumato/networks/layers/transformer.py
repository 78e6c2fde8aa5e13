"""Transformer blocks with adaptive layer norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.attention import attend
from sfumato.networks.layers.normalization import zeroed


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C), one projection for q, k and v.

    Args:
        width: C.
        heads: how many.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InvalidInput(f"a width of {width} does not fall into {heads} heads", where="heads")
        self.site = Site("", "self")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        batch, count, width = h.shape
        # Taken apart before it is turned: its gradient is then put together in one pass and not in two.
        q, k, v = (
            each.transpose(1, 2) for each in self.qkv(h).view(batch, count, 3, self.heads, -1).unbind(2)
        )
        made = attend(self.site, context, q, k, v).transpose(1, 2).reshape(batch, count, width)
        return _linear(self.proj, made)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens (B, N, C) to the condition's tokens (B, L, D), masked where it says
    so.

    Args:
        width: C.
        heads: how many.
        tokens: D.
    """

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.site = Site("", "cross")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(tokens, 2 * width)
        self.proj = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        condition = context.condition
        if condition.tokens is None:
            return torch.zeros_like(h)
        batch, count, width = h.shape
        q = self.q(h).view(batch, count, self.heads, -1).transpose(1, 2)
        told = self.kv(condition.tokens.to(h))
        k, v = (
            each.transpose(1, 2)
            for each in told.view(batch, -1, 2, self.heads, width // self.heads).unbind(2)
        )
        mask = None if condition.mask is None else condition.mask[:, None, None, :]
        return self.proj(
            attend(self.site, context, q, k, v, mask).transpose(1, 2).reshape(batch, count, width)
        )


class FeedForward(nn.Module):
    """Two linear layers with a GELU (tanh form) between them."""

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, h: Tensor) -> Tensor:
        return _linear(self.fc2, _gelu(self.fc1(h)))


def _linear(layer: nn.Module, h: Tensor) -> Tensor:
    if torch.compiler.is_compiling() and type(layer) is nn.Linear:
        # Compiled, a bias joins what comes next; with the product, it is first copied all over the result.
        return F.linear(h, layer.weight) + layer.bias
    made: Tensor = layer(h)
    return made


def _gelu(h: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # The same, h / 2 (1 + tanh(u / 2)) = h / (1 + exp(-u)), in half the time: tanh is torch's slowest.
        return h * torch.sigmoid(h * (1.5957691216057308 + 0.07135481282553508 * h * h))
    return F.gelu(h, approximate="tanh")


class TransformerBlock(nn.Module):
    """DiT's block: attention and feed-forward, each shifted, scaled and gated by the embedding (adaLN-Zero).

        h += gate_a · attention(LN(h) (1 + scale_a) + shift_a);  h += gate_m · mlp(LN(h) (1 + scale_m) +
        shift_m)

    All gates start at 0, so the block starts as the identity. With `tokens`, cross-attention stands between.

    Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748, section 3.2.

    Args:
        width: C of tokens (B, N, C), and of the embedding.
        heads: of attention.
        tokens: width of the condition's tokens; 0 for none.
    """

    def __init__(self, width: int, heads: int, tokens: int = 0) -> None:
        super().__init__()
        self.site = Site("", "transformer")
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(width, heads)
        self.norm_cross = nn.LayerNorm(width, eps=1e-6) if tokens else None
        self.cross = CrossAttention(width, heads, tokens) if tokens else None
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = FeedForward(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Tokens (B, N, C) → the same shape."""
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        told = self.adaLN_modulation(context.embedding)[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = told
        h = h + gate_a * self.attn(self.norm1(h) * (1 + scale_a) + shift_a, context)
        if self.cross is not None and self.norm_cross is not None:
            h = h + self.cross(self.norm_cross(h), context)
        return h + gate_m * self.mlp(self.norm2(h) * (1 + scale_m) + shift_m)
