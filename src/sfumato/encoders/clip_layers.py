"""The layers both towers of CLIP are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.networks.layers.attention import softmax_attention

Activation = Literal["quick_gelu", "gelu"]


class Encoded(NamedTuple):
    """What a tower makes of its input.

    Args:
        states: (B, N, width), one a token or patch.
        pooled: (B, projection), the whole in one vector; None where it was not asked for.
    """

    states: Tensor
    pooled: Tensor | None = None


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, width), with biases everywhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, h: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            project(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = softmax_attention(q, k, v, causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them: the exact one, or x · sigmoid(1.702 x)."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        h = self.fc1(h)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class Layer(nn.Module):
    """h += attention(norm(h)); h += feed-forward(norm(h))."""

    def __init__(self, width: int, heads: int, hidden: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden, activation)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, h: Tensor, causal: bool) -> Tensor:
        h = h + self.self_attn(self.layer_norm1(h), causal)
        return h + self.mlp(self.layer_norm2(h))


class Layers(nn.Module):
    """Layers one after another; it gives the states before the first and after each.

    Args:
        width: of the states (B, N, width).
        depth: how many.
        heads: of attention.
        hidden: of the feed-forward; 0 is four times the width.
        activation: in the feed-forward.
        causal: a token attends to those before it and to itself.
        eps: of the layer norms.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        activation: Activation,
        causal: bool,
        eps: float,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 1 or heads < 1 or width % heads:
            raise InvalidInput(
                f"{depth} layers of a width of {width}, which is to fall into {heads} heads", where="heads"
            )
        if activation not in ("quick_gelu", "gelu"):
            raise InvalidInput(f"{activation!r} is neither quick_gelu nor gelu", where="activation")
        self.causal, self.hidden = causal, hidden or 4 * width
        self.layers = nn.ModuleList([Layer(width, heads, self.hidden, activation, eps) for _ in range(depth)])

    def forward(self, h: Tensor, upto: int | None = None) -> list[Tensor]:
        """States (B, N, width) → those before the first layer and after each of the first `upto`."""
        states = [h]
        for layer in self.layers[:upto]:
            states.append(layer(states[-1], self.causal))
        return states

    def initialise(self) -> None:
        """As CLIP was: normal numbers that shrink with width and, where a residual is written, with depth."""
        width = self.layers[0].layer_norm1.weight.numel()  # type: ignore[union-attr,operator]
        into, out = width**-0.5, (width * 2 * len(self.layers)) ** -0.5
        for layer in self.layers:
            assert isinstance(layer, Layer)
            attention = layer.self_attn
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                nn.init.normal_(linear.weight, std=into)
            nn.init.normal_(attention.out_proj.weight, std=out)
            nn.init.normal_(layer.mlp.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(layer.mlp.fc2.weight, std=out)
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
