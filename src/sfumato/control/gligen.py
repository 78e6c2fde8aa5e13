"""GLIGEN: boxes with what is in them, shown to a frozen network by gated attention between its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Hooks, Site
from sfumato.networks.layers.spatial_transformer import Attention, FeedForward

_FREQUENCIES, _HIDDEN = 8, 512


@dataclass(eq=False, repr=False)
class Gligen(nn.Module):
    """Grounding tokens of boxes and their words, that the places of the network's maps attend to.

        token = mlp(text ⊕ fourier(x0, y0, x1, y1)),
        h += tanh(γ) · attn(LN(h ⊕ linear(tokens)))[places];   h += tanh(γ') · ff(LN(h))

    in every transformer block, between its attention to itself and that to the text. Both γ begin at 0, so
    that a fresh one changes nothing. It acts by hooks in the first `share` of the walk (the paper's τ), and
    its weights are all that learns. Tokens are the condition's image tokens, each what the text tower makes
    of the words, the box's corners in parts of the picture, and 1, or 0 for no object, when what was learnt
    for none stands in place of both; the conditioner `grounding` makes them.

    Which places lie in which box a released one has to learn from pictures by the million. One that is
    `masked` is told: a place attends to the objects alone whose boxes it lies in, and each of them weighs at
    first as much as all places.

    Li et al. 2023, "GLIGEN: Open-Set Grounded Text-to-Image Generation", arXiv:2301.07093, section 4 and
    equations 4 to 9; masked after Wang et al. 2024, "InstanceDiffusion", arXiv:2402.03290, section 3.2.

    Args:
        widths: channels of the network's transformer blocks, in the order of its modules.
        heads: of the self-attention in each.
        text: width of what is said of an object's words.
        tokens: width of the grounding tokens.
        share: of the walk from noise, by the time the network is told, in which it acts; always in training.
        span: the network's time of pure noise, 1000 of discrete ones.
        masked: whether places are shown the objects of their own boxes alone.

    Raises:
        InvalidInput: settings that are none; networks and tokens that do not fit.
    """

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    text: int = 768
    tokens: int = 768
    share: float = 1.0
    span: float = 1000.0
    masked: bool = False

    @staticmethod
    def of(
        network: nn.Module, text: int = 768, tokens: int = 768, share: float = 1.0, masked: bool = False
    ) -> Gligen:
        """A fresh one for a network, which changes nothing yet."""
        blocks = [block for _, block in places_of(network)]
        if not blocks:
            raise InvalidInput(f"a {type(network).__name__} has no place for it", where="gligen")
        widths = tuple(block.attn1.to_q.out_features for block in blocks)
        made = Gligen(
            widths, tuple(block.attn1.heads for block in blocks), text, tokens, share, masked=masked
        )
        like = next(network.parameters())
        return made.to(device=like.device, dtype=like.dtype)

    def __post_init__(self) -> None:
        super().__init__()
        if not self.widths or len(self.widths) != len(self.heads) or min(self.text, self.tokens) < 1:
            raise InvalidInput("give widths, as many heads, and widths of texts and tokens", where="gligen")
        if not 0 <= self.share <= 1 or self.span <= 0:
            raise InvalidInput(f"{self.share} is no share of a walk of {self.span}", where="gligen.share")
        self.position_net = PositionNet(self.text, self.tokens)
        self.fusers = nn.ModuleList(
            GatedAttention(width, heads, self.tokens)
            for width, heads in zip(self.widths, self.heads, strict=True)
        )

    @property
    def growth(self) -> float:
        """Root mean square of the gates, which begin at 0."""
        gates: list[Any] = [gate for fuser in self.fusers for gate in (fuser.alpha_attn, fuser.alpha_dense)]
        return float(torch.stack(gates).detach().square().mean().sqrt())

    def check_fits(self, network: nn.Module) -> None:
        """InvalidInput where the network's transformer blocks are others."""
        found = tuple(block.attn1.to_q.out_features for _, block in places_of(network))
        if found != self.widths:
            what = (
                f"made for {len(self.widths)} blocks of {sorted(set(self.widths))} channels, and the network "
            )
            raise InvalidInput(f"{what}has {len(found)} of {sorted(set(found))}", where="gligen")

    def hooks(self, image_tokens: Tensor, network: nn.Module, x: Tensor, time: Tensor) -> Hooks:
        """The advice that shows the network the boxes.

        Args:
            image_tokens: (B, N, text + 5).
            network: between whose attentions it stands.
            x: (B, C, H, W), what the network is given.
            time: (B,), as the network is told it.
        """
        if image_tokens.ndim != 3 or image_tokens.shape[2] != self.text + 5:
            what = (
                f"image tokens {tuple(image_tokens.shape)} where a text of {self.text} and a box are wanted"
            )
            raise InvalidInput(what, where="image_tokens", do="make them by conditioners.grounding")
        tokens = self.position_net(image_tokens.to(next(self.parameters())))
        acts = torch.ones_like(time, dtype=torch.bool)
        if not self.training and self.share < 1:
            acts = time >= (1 - self.share) * self.span
        names = [name for name, _ in places_of(network)]
        fusers = {f"{name}.between": fuser for name, fuser in zip(names, self.fusers, strict=True)}
        seen = image_tokens[..., -5:] if self.masked else None
        return Grounding(tokens, acts, fusers, seen, x.shape[3] / x.shape[2])


@dataclass(frozen=True, eq=False)
class Grounding(Hooks):
    """After every block's attention to itself, the gated one to grounding tokens.

    Args:
        tokens: (B, N, tokens).
        acts: (B,) bool, for which rows.
        fusers: by the name of the place between a block's attentions.
        boxes: (B, N, 5), corners and whether there is an object, if places see those of their own boxes only.
        aspect: of the map, its width in heights.
    """

    tokens: Tensor
    acts: Tensor
    fusers: Mapping[str, nn.Module]
    boxes: Tensor | None = None
    aspect: float = 1.0

    def block(self, site: Site, context: Context, run: Any, h: Tensor) -> Tensor:
        """What stands at the place, with what is seen of the boxes."""
        h = run(h)
        fuser = self.fusers.get(site.name)
        if fuser is None:
            return h
        bias = None
        if self.boxes is not None:
            height = round((h.shape[1] / self.aspect) ** 0.5)
            bias = seen_by(self.boxes.to(h), (height, h.shape[1] // height))
        made = fuser(h, self.tokens.to(h), context, bias)
        return torch.where(self.acts.to(h.device)[:, None, None], made, h)


@dataclass(frozen=True, eq=False)
class Biased(Hooks):
    """Attention whose scores are moved by a bias (B, N, M) before the softmax."""

    bias: Tensor

    def attention(self, site: Site, context: Context, attend: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, heads, N, D); k, v (B, heads, M, D) → (B, heads, N, D)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:, None].to(q))


def seen_by(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What moves the scores of places, and of tokens after them, before the softmax: (B, N + M, N + M).

    Of a place and a token log N where they meet, so that the token weighs as much as all N places do, and
    minus infinity elsewhere; all others are 0.

    Args:
        boxes: (B, M, 5), corners as parts of the picture, and 1 where there is an object.
        size: height and width of the map, N places in reading order.
    """
    height, width = size
    x0, y0, x1, y1, there = boxes[:, None].unbind(-1)
    rows = torch.arange(height, device=boxes.device).repeat_interleave(width)[:, None]
    columns = torch.arange(width, device=boxes.device).repeat(height)[:, None]
    across = (x0 * width < columns + 1) & (x1 * width > columns)
    down = (y0 * height < rows + 1) & (y1 * height > rows)
    count, objects = height * width, boxes.shape[1]
    bias = boxes.new_zeros(len(boxes), count + objects, count + objects)
    met = across & down & (there > 0)
    bias[:, :count, count:] = torch.where(met, math.log(count), -torch.inf)
    return bias


class GatedAttention(nn.Module):
    """Self-attention of places and grounding tokens together, and a feed-forward, each behind a gate."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, width)
        self.attn = Attention(width, heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.alpha_attn, self.alpha_dense = (nn.Parameter(torch.tensor(0.0)) for _ in range(2))

    def forward(self, h: Tensor, tokens: Tensor, context: Context, bias: Tensor | None = None) -> Tensor:
        """Places (B, N, width) and tokens (B, M, tokens) → places; a bias is as `seen_by` says."""
        both = self.norm1(torch.cat((h, self.linear(tokens)), dim=1))
        # Not one of the network's own attentions: the caller's hooks know nothing of it.
        bare = Context(context.embedding, Condition(hooks=None if bias is None else Biased(bias)))
        h = h + self.alpha_attn.tanh() * self.attn(both, bare)[:, : h.shape[1]]
        made: Tensor = h + self.alpha_dense.tanh() * self.ff(self.norm2(h))
        return made


class PositionNet(nn.Module):
    """Texts and boxes (B, N, text + 5) → grounding tokens (B, N, tokens).

    A corner u is told by sin and cos of 100^(i / 8) u, i = 0 .. 7. Fresh weights keep the variance of what
    they read (E[swish(z)²] = .3557 for a normal z); PyTorch's lose nine tenths of it a layer.
    """

    def __init__(self, text: int, tokens: int) -> None:
        super().__init__()
        places = 8 * _FREQUENCIES
        layers = (nn.Linear(text + places, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU())
        self.linears = nn.Sequential(*layers, nn.Linear(_HIDDEN, tokens))
        fresh = [layer for layer in self.linears if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(fresh):
            nn.init.normal_(layer.weight, std=((0.3557 if number else 1) * layer.in_features) ** -0.5)
            nn.init.zeros_(layer.bias)
        self.null_positive_feature = nn.Parameter(torch.zeros(text))
        self.null_position_feature = nn.Parameter(torch.zeros(places))

    def forward(self, told: Tensor) -> Tensor:
        text, boxes, there = told[..., :-5], told[..., -5:-1], told[..., -1:]
        text = text * there + (1 - there) * self.null_positive_feature
        place = fourier(boxes) * there + (1 - there) * self.null_position_feature
        made: Tensor = self.linears(torch.cat((text, place), dim=-1))
        return made


def fourier(boxes: Tensor) -> Tensor:
    """Corners (.., 4) → (.., 64): by frequency, sine before cosine, the four corners together."""
    powers = torch.arange(_FREQUENCIES, device=boxes.device, dtype=boxes.dtype) / _FREQUENCIES
    angles = boxes[..., None] * 100**powers
    return torch.stack((angles.sin(), angles.cos()), dim=-1).movedim(-3, -1).flatten(-3)


def places_of(network: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of a network's transformer blocks that have a place between their attentions."""
    return [(name, module) for name, module in network.named_modules() if hasattr(module, "between")]
