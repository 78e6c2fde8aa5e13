"""The spatial transformer: the places of a feature map as tokens that attend to each other and to text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.attention import attend
from sfumato.networks.layers.normalization import GroupNorm, zeroed


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, C) to themselves, or to the condition's tokens (B, L, D).

        to_out(softmax(q kᵀ / sqrt(C / heads)) v)

    Its site is of kind "cross" if it attends to the condition, and then heeds its mask and says nothing
    where there are no tokens; else it is of kind "self".

    Args:
        width: C.
        heads: how many; each takes as many channels as the next.
        tokens: D; 0 for attention to themselves.
    """

    def __init__(self, width: int, heads: int, tokens: int = 0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise InvalidInput(f"{width} channels do not fall into {heads} heads", where="heads")
        self.site = Site("", "cross" if tokens else "self")
        self.heads, self.tokens = heads, tokens
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(tokens or width, width, bias=False)
        self.to_v = nn.Linear(tokens or width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Tokens (B, N, C) → the same shape."""
        seen, mask = h, None
        if self.tokens:
            condition = context.condition
            if condition.tokens is None:
                return torch.zeros_like(h)
            seen = condition.tokens.to(h)
            mask = None if condition.mask is None else condition.mask[:, None, None, :]
        q, k, v = self._split(self.to_q(h)), self._split(self.to_k(seen)), self._split(self.to_v(seen))
        return self.to_out(attend(self.site, context, q, k, v, mask).transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, C) → (B, heads, N, C / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


_PIECE = 1 << 21
"""Numbers between a feed-forward's layers that a CPU still has at hand when it comes to the second."""


class GEGLU(nn.Module):
    """A linear layer gated by the GELU (erf form) of another: (.., width) → (.., out).

    Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, h: Tensor) -> Tensor:
        return self.gated(self.proj(h))

    @staticmethod
    def gated(both: Tensor) -> Tensor:
        """The first half, gated by the second."""
        h, gate = both.chunk(2, dim=-1)
        return h * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a linear layer back.

    On a CPU a few rows at a time where no gradient is asked for: four times the map would go through memory
    twice, which takes a fifth of the time.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = 8 * width
        # Between them the published code has a dropout that no published network uses.
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        rows = max(1, _PIECE // self.inner)
        whole = h.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if whole or h.shape[:-1].numel() <= rows:
            return self.net(h)
        return torch.cat([self.net(piece) for piece in torch.split(h.flatten(0, -2), rows)]).view(h.shape)


class Between(nn.Module):
    """The place between a block's two attentions, where hooks may put layers; by itself it does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.site = Site("", "between")

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Places (B, N, C) → the same."""
        if context.hooks is None:
            return h
        return context.hooks.block(self.site, context, lambda h: h, h)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the condition's tokens, feed-forward; each after a norm and added.

        h += attn1(LN(h));  h += attn2(LN(h));  h += ff(LN(h))

    Without tokens attn2 is self-attention too, as in the published code. It is not told the time.

    Args:
        width: C of the places (B, N, C).
        heads: of both attentions.
        tokens: width of the condition's tokens; 0 for none.
        cross_only: attn1 attends to the condition's tokens as well.
    """

    def __init__(self, width: int, heads: int, tokens: int = 0, cross_only: bool = False) -> None:
        super().__init__()
        self.site = Site("", "transformer")
        self.attn1 = Attention(width, heads, tokens if cross_only else 0)
        self.between = Between()
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, heads, tokens)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Places (B, N, C) → the same shape."""
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        h = self.between(h + self.attn1(self.norm1(h), context), context)
        h = h + self.attn2(self.norm2(h), context)
        return h + self.ff(self.norm3(h))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a map (B, C, H, W), added to it.

    Group norm, a projection, the places as tokens in reading order, blocks, a projection that starts at zero.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    appendix E.2.1.

    Args:
        channels: C.
        heads: of every attention.
        depth: blocks.
        tokens: width of the condition's tokens; 0 for none.
        linear: projections are linear layers rather than convolutions of one place: the same numbers, whose
            weights are matrices.
        cross_only: the blocks' first attention, too, is to the condition's tokens.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int = 1,
        tokens: int = 0,
        linear: bool = False,
        cross_only: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, tokens, cross_only) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Feature map (B, C, H, W) → the same shape."""
        inner = self.norm(h)
        if self.linear:
            inner = self.proj_in(inner.flatten(2).transpose(1, 2))
        else:
            inner = self.proj_in(inner).flatten(2).transpose(1, 2).contiguous()
        for block in self.transformer_blocks:
            inner = block(inner, context)
        if self.linear:
            return h + self.proj_out(inner).transpose(1, 2).unflatten(2, h.shape[2:])
        return h + self.proj_out(inner.transpose(1, 2).unflatten(2, h.shape[2:]))
