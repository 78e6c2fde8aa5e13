"""IP-Adapter: pictures as prompts, attended to beside the text by keys and values of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.hooks import Attend, Context, Hooks, Site, all_sites
from sfumato.networks.layers.attention import softmax_attention

_SD1 = (*[320] * 2, *[640] * 2, *[1280] * 5, *[640] * 3, *[320] * 3, 1280)
_XL = (*[640] * 4, *[1280] * 50, *[640] * 6, *[1280] * 10)
_PLUS: dict[str, Any] = {"projection": "resampler", "count": 16, "seen": 1280}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sd1": {"widths": _SD1},
    "sd1_plus": {"widths": _SD1, **_PLUS},
    "sd1_full_face": {"widths": _SD1, "projection": "layers", "count": 257, "seen": 1280},
    "sdxl": {"widths": _XL, "tokens": 2048, "seen": 1280},
    "sdxl_vit_h": {"widths": _XL, "tokens": 2048},
    "sdxl_plus": {"widths": _XL, "tokens": 2048, **_PLUS, "width": 1280, "heads": 20},
}
"""Settings of the published adapters."""

_HEAD = 64
"""Channels a head of the resampler, in all published weights."""


@dataclass(eq=False, repr=False)
class IPAdapter(nn.Module):
    """Decoupled attention: what the network attends to of a picture, added to what it attends to of the text.

        z = softmax(q K(text)ᵀ / √d) V(text) + s · softmax(q K'(picture)ᵀ / √d) V'(picture)

    at every attention to the condition's tokens, before their common projection; K' and V' are one pair of
    matrices a place. The picture is what CLIP sees in it, made into tokens by `image_proj`; s, its strength,
    is the last number of each of the condition's image tokens, so that every row, and every picture of one,
    has its own; at 0 the network is as it is. It acts by hooks, and its weights are all that learns. State-
    dict names are those of the released files, whose odd numbers go down, up, and to the middle.

    Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
    arXiv:2308.06721, section 3.2, equation 5; "plus" and "full face" as its authors released them.

    Args:
        widths: channels of the network's attentions to text, down, up, and in the middle.
        tokens: width of a text's tokens, and of those made here.
        seen: width of what CLIP makes of a picture.
        count: how many tokens a picture becomes; of "layers", as many as there are states.
        projection: "linear", of CLIP's pooled vector; "resampler" or "layers", of the states of its layer
            before the last.
        width: of the resampler's own tokens.
        depth: layers of the resampler.
        heads: of its attention, each of 64 channels.

    Raises:
        InvalidInput: settings that are none; networks and tokens that do not fit.
    """

    widths: tuple[int, ...]
    tokens: int = 768
    seen: int = 1024
    count: int = 4
    projection: Literal["linear", "resampler", "layers"] = "linear"
    width: int = 768
    depth: int = 4
    heads: int = 12

    @staticmethod
    def published(name: str) -> IPAdapter:
        """One with the settings of published weights, by a name of PUBLISHED such as "sdxl"."""
        return IPAdapter(**look_up(PUBLISHED, name, "published adapter"))

    @staticmethod
    def of(network: nn.Module, seen: int = 1024, **settings: Any) -> IPAdapter:
        """A fresh adapter of a network, whose K' and V' begin as copies of the network's K and V."""
        held = [network.get_submodule(name) for name in sites_of(network)]
        if not held:
            raise InvalidInput(f"a {type(network).__name__} attends to no text", where="ip_adapter")
        widths = tuple(part.to_k.out_features for part in held)  # type: ignore[union-attr]
        made = IPAdapter(widths, held[0].to_k.in_features, seen, **settings)  # type: ignore[union-attr,arg-type]
        pairs: Any = made.ip_adapter.values()
        for pair, part in zip(pairs, held, strict=True):
            pair["to_k_ip"].load_state_dict(part.to_k.state_dict())  # type: ignore[union-attr]
            pair["to_v_ip"].load_state_dict(part.to_v.state_dict())  # type: ignore[union-attr]
        like = next(network.parameters())
        return made.to(device=like.device, dtype=like.dtype)

    def __post_init__(self) -> None:
        super().__init__()
        sizes = (*self.widths, self.tokens, self.seen, self.count, self.width, self.depth, self.heads)
        if not self.widths or min(sizes) < 1:
            raise InvalidInput(
                "widths, tokens and all other sizes are whole numbers from 1", where="ip_adapter"
            )
        self.image_proj: nn.Module
        if self.projection == "linear":
            self.image_proj = Linear(self.seen, self.tokens, self.count)
        elif self.projection == "layers":
            self.image_proj = PerState(self.seen, self.tokens)
        else:
            self.image_proj = Resampler(
                self.seen, self.tokens, self.count, self.width, self.depth, self.heads
            )
        pairs = {}
        for place, width in enumerate(self.widths):
            pair = {name: nn.Linear(self.tokens, width, bias=False) for name in ("to_k_ip", "to_v_ip")}
            pairs[str(2 * place + 1)] = nn.ModuleDict(pair)
        self.ip_adapter = nn.ModuleDict(pairs)

    @property
    def states(self) -> bool:
        """Whether it reads CLIP's states rather than the pooled vector."""
        return self.projection != "linear"

    def check_fits(self, network: nn.Module) -> None:
        """InvalidInput where the network's attentions to text are others."""
        held = [network.get_submodule(name) for name in sites_of(network)]
        found = tuple((part.to_k.out_features, part.to_k.in_features) for part in held)  # type: ignore[union-attr]
        if found != tuple((width, self.tokens) for width in self.widths):
            what = f"an adapter of {len(self.widths)} attentions to tokens of {self.tokens} for a network of "
            told = f"{len(found)} to tokens of {found[0][1]}" if found else "none"
            raise InvalidInput(what + told, where="ip_adapter", do="take one made for this kind of model")

    def hooks(self, image_tokens: Tensor, network: nn.Module, x: Tensor, time: Tensor) -> Hooks:
        """The advice that shows the network what CLIP saw.

        Args:
            image_tokens: (B, pictures or states, seen + 1), the strength last.
            network: whose attentions it goes around.
            x: what it is given, which this does not heed.
            time: (B,), neither.
        """
        if image_tokens.ndim != 3 or image_tokens.shape[2] != self.seen + 1:
            raise InvalidInput(
                f"image tokens {tuple(image_tokens.shape)} for an adapter of {self.seen} and a strength",
                where="image_tokens",
            )
        like = next(self.parameters())
        seen, strength = image_tokens.to(like)[..., :-1], image_tokens[..., -1:]
        tokens = self.image_proj(seen)
        # Each picture's strength for each token it became; states are of one picture.
        strength = strength[:, :1] if self.states else strength.repeat_interleave(self.count, dim=1)
        return ImagePrompt(
            tokens, strength, dict(zip(sites_of(network), self.ip_adapter.values(), strict=True))
        )


@dataclass(frozen=True, eq=False)
class ImagePrompt(Hooks):
    """Around every attention to text, a second one to the tokens of a picture.

    Args:
        tokens: (B, M, tokens).
        strength: (B, M or 1, 1).
        pairs: `to_k_ip` and `to_v_ip`, by the name of the attention.
    """

    tokens: Tensor
    strength: Tensor
    pairs: Mapping[str, nn.Module]

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """What is attended to in the text, and what in the picture."""
        said = attend(q, k, v)
        pair: Any = self.pairs.get(site.name)
        if pair is None:
            return said
        # The values are linear in the strength, and the keys know nothing of it.
        values = pair["to_v_ip"](self.tokens) * self.strength.to(self.tokens)
        heads = (
            each.to(q).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
            for each in (pair["to_k_ip"](self.tokens), values)
        )
        return said + softmax_attention(q, *heads)


def sites_of(network: nn.Module) -> list[str]:
    """Names of a U-Net's second attentions, to text: down, up, and in the middle, as adapters number them."""
    ways = ("input_blocks.", "output_blocks.", "middle_block.")
    every = all_sites(network)
    names = [site.name for site in every if site.kind == "cross" and site.name.endswith(".attn2")]
    return [name for way in ways for name in names if name.startswith(way)]


class Linear(nn.Module):
    """Pooled vectors (B, pictures, seen) → (B, pictures · count, tokens): a linear layer, cut, and a norm."""

    def __init__(self, seen: int, tokens: int, count: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(seen, count * tokens)
        self.norm = nn.LayerNorm(tokens)

    def forward(self, seen: Tensor) -> Tensor:
        made: Tensor = self.norm(self.proj(seen).unflatten(-1, (-1, self.tokens)))
        return made.flatten(1, 2)


class PerState(nn.Module):
    """States (B, N, seen) → (B, N, tokens), each by two linear layers with a GELU between and a norm."""

    def __init__(self, seen: int, tokens: int) -> None:
        super().__init__()
        layers = (nn.Linear(seen, seen), nn.GELU(), nn.Linear(seen, tokens), nn.LayerNorm(tokens))
        self.proj = nn.Sequential(*layers)

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(states)


class Resampler(nn.Module):
    """States (B, N, seen) → (B, count, tokens): learnt tokens that attend to them and to each other.

    Alayrac et al. 2022, "Flamingo", arXiv:2204.14198, section 2.1.
    """

    def __init__(self, seen: int, tokens: int, count: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, count, width) / width**0.5)
        self.proj_in = nn.Linear(seen, width)
        self.proj_out = nn.Linear(width, tokens)
        self.norm_out = nn.LayerNorm(tokens)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Look(width, heads), _feed_forward(width)]) for _ in range(depth)
        )

    def forward(self, states: Tensor) -> Tensor:
        states, h = self.proj_in(states), self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            look, feed_forward = cast(nn.ModuleList, layer)
            h = h + look(states, h)
            h = h + feed_forward(h)
        made: Tensor = self.norm_out(self.proj_out(h))
        return made


class _Look(nn.Module):
    """Attention of learnt tokens to states and to themselves, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * _HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * _HEAD, bias=False)
        self.to_out = nn.Linear(heads * _HEAD, width, bias=False)

    def forward(self, states: Tensor, h: Tensor) -> Tensor:
        own = self.norm2(h)
        k, v = self.to_kv(torch.cat((self.norm1(states), own), dim=1)).chunk(2, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(own), k, v))
        made: Tensor = self.to_out(softmax_attention(q, k, v).transpose(1, 2).flatten(2))
        return made


def _feed_forward(width: int) -> nn.Sequential:
    layers = (nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False))
    return nn.Sequential(nn.LayerNorm(width), *layers)
