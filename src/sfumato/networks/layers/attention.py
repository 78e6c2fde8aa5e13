"""Attention over the places of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.networks.layers.normalization import GroupNorm, zeroed


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q (B, heads, N, D); k, v (B, heads, M, D) → (B, heads, N, D).

    In training, 16-bit rows are computed with in float32 on a CPU: torch's gradient of them takes three to
    eight times as long otherwise.

    Args:
        q: what asks.
        k: what is asked.
        v: what is answered.
        mask: bool, True where attended, of any shape that broadcasts to (B, heads, N, M).
        causal: nobody attends to what stands later.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            wide = q.float(), k.float(), v.float()
            if torch.compiler.is_compiling():
                # Compiled, the gradient of torch's kernel fails as soon as the number of keys is another.
                return _written_out(*wide, mask, causal).to(v.dtype)
            return F.scaled_dot_product_attention(*wide, attn_mask=mask, is_causal=causal).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def attend(
    site: Site, context: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, around which the hooks of the context are called.

    q (B, heads, N, D); k, v (B, heads, M, D); mask (B, 1, 1, M) bool, True where attended → (B, heads, N, D).
    """
    if context.hooks is None:
        return softmax_attention(q, k, v, mask)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if mask is not None and mask.shape[-1] != k.shape[-2]:
            raise InvalidInput("a hook changed the number of keys of a masked attention", where=site.name)
        return softmax_attention(q, k, v, mask)

    return context.hooks.attention(site, context, run, q, k, v)


class SpatialAttention(nn.Module):
    """ADM's attention block: every place of the map attends to every other, and to tokens if there are any.

    Group norm, one convolution for q, k and v, heads, a zero-initialised projection, and the input added
    back.

    Dhariwal & Nichol 2021, arXiv:2105.05233; tokens as in GLIDE (Nichol et al. 2021, arXiv:2112.10741): their
    keys and values stand before the map's own.

    Args:
        channels: C of the map (B, C, H, W).
        heads: how many.
        new_order: q, k, v outermost in the convolution's output; else (legacy) heads are.
        tokens: width of the tokens attended to, 0 for none.
        eps: of the group norm.
    """

    def __init__(
        self, channels: int, heads: int, new_order: bool = False, tokens: int = 0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if channels % heads:
            raise InvalidInput(f"{channels} channels do not fall into {heads} heads", where="heads")
        self.site = Site("", "self")
        self.heads, self.new_order = heads, new_order
        self.norm = GroupNorm(channels, eps)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = nn.Conv1d(tokens, 2 * channels, 1) if tokens else None
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Feature map (B, C, H, W) → the same shape."""
        shape = h.shape
        flat = h.flatten(2)
        q, k, v = self._split(self.qkv(self.norm(flat)), 3)
        mask = None
        if self.encoder_kv is not None and context.condition.tokens is not None:
            told = self._split(self.encoder_kv(context.condition.tokens.to(flat).transpose(1, 2)), 2)
            k, v = torch.cat((told[0], k), dim=2), torch.cat((told[1], v), dim=2)
            if context.condition.mask is not None:
                mask = F.pad(context.condition.mask, (0, q.shape[2]), value=True)[:, None, None, :]
        out = attend(self.site, context, q, k, v, mask)
        return h + self.proj_out(out.transpose(-1, -2).reshape(flat.shape)).view(shape)

    def _split(self, stacked: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, parts · C, N) → `parts` tensors (B, heads, N, D)."""
        batch, _, places = stacked.shape
        if self.new_order:
            each = stacked.view(batch, parts, self.heads, -1, places).unbind(1)
        else:
            each = stacked.view(batch, self.heads, parts, -1, places).unbind(2)
        rows = tuple(part.transpose(-1, -2) for part in each)
        if torch.compiler.is_compiling():
            # What torch 2.13 compiles of such a copy of bf16 writes numbers that nobody computed.
            return rows
        # Flash kernels want contiguous rows; without them attention takes twice the time.
        return tuple(each.contiguous() for each in rows)
