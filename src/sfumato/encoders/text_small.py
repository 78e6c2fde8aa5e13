"""A small text transformer that is trained together with the model it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput, look_up
from sfumato.encoders.word_piece import END, PAD, START, WordPiece
from sfumato.networks.layers.attention import softmax_attention

_LDM: dict[str, Any] = {"vocabulary": 30522, "masked": False, "logits": True, "dim_head": 64}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ldm_text": {**_LDM, "width": 1280, "depth": 32},
    "ldm_text_256": {**_LDM, "width": 640, "depth": 32},
}
"""Settings of the published encoders of latent diffusion; their vocabulary, BERT's, comes in a vocab.txt."""


@dataclass(eq=False, repr=False)
class TextSmall(nn.Module):
    """A transformer over the words of a caption, all of which see each other, learnt from nothing.

    forward(ids (B, N), real (B, N)) → states (B, N, width). Norms stand before attention and feed-forward
    and after all; q, k and v have no bias. Names of the weights are those of latent diffusion's text encoder.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    appendix E.2.1.

    Args:
        tokenizer: captions to ids; `WordPiece.of(captions)` makes one.
        width: of the states.
        depth: layers.
        heads: of attention.
        dim_head: numbers a head; their sum need not be the width.
        length: the longest caption, begin and end included; longer ones are refused.
        masked: padding is not attended to, here or by the network that is told; else it is, as in the
            published encoders, and all captions are of the full length.
        vocabulary: how many ids there are, if more than the tokenizer has.
        logits: with the layer from states to words that published files have and nobody uses.
    """

    tokenizer: WordPiece = field(default_factory=WordPiece)
    width: int = 256
    depth: int = 4
    heads: int = 8
    dim_head: int = 32
    length: int = 77
    masked: bool = True
    vocabulary: int = 0
    logits: bool = False

    @staticmethod
    def published(name: str, tokenizer: WordPiece | None = None) -> TextSmall:
        """An encoder with the settings of published weights, by a name of PUBLISHED."""
        return TextSmall(tokenizer or WordPiece(), **look_up(PUBLISHED, name, "published encoder"))

    def __post_init__(self) -> None:
        super().__init__()
        words = len(self.tokenizer.vocabulary)
        if 0 < self.vocabulary < words:
            raise InvalidInput(f"{words} pieces and {self.vocabulary} ids", where="text_small.vocabulary")
        if min(self.width, self.depth, self.heads, self.dim_head) < 1 or self.length < 3:
            raise InvalidInput("a size is too small", where="text_small")
        count = self.vocabulary or words
        self.token_emb = nn.Embedding(count, self.width)
        self.pos_emb = nn.ModuleDict({"emb": nn.Embedding(self.length, self.width)})
        layers: list[nn.Module] = []
        for _ in range(self.depth):
            attention = _Attention(self.width, self.heads, self.dim_head)
            layers.append(nn.ModuleList([nn.LayerNorm(self.width), attention]))
            layers.append(nn.ModuleList([nn.LayerNorm(self.width), _FeedForward(self.width)]))
        self.attn_layers = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.norm = nn.LayerNorm(self.width)
        self.to_logits = nn.Linear(self.width, count) if self.logits else None
        nn.init.normal_(self.token_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb["emb"].weight, std=0.02)  # type: ignore[arg-type]

    def lay(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Captions → ids (B, N) with begin, end and padding, and where they are real if `masked`.

        Raises:
            InvalidInput: a caption of more tokens than there is room for.
        """
        table = self.tokenizer.table
        rows = [[table[START], *self.tokenizer.ids(caption), table[END]] for caption in captions]
        for caption, row in zip(captions, rows, strict=True):
            if len(row) > self.length:
                raise InvalidInput(
                    f"{len(row) - 2} tokens, and there is room for {self.length - 2}: {caption[:60]!r}",
                    where="prompt",
                    do="say it in fewer words",
                )
        longest = max(map(len, rows)) if self.masked else self.length
        ids = torch.tensor([row + [table[PAD]] * (longest - len(row)) for row in rows])
        real = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
        device = self.norm.weight.device
        return ids.to(device), real.to(device) if self.masked else None

    @staticmethod
    def pool(states: Tensor, real: Tensor | None) -> Tensor:
        """States (B, N, width), and where they are real → their mean (B, width)."""
        weights = states.new_ones(states.shape[:2]) if real is None else real.to(states)
        return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        """Ids (B, N), and where they are to be attended to (B, N) → states (B, N, width)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        h = self.token_emb(ids) + self.pos_emb["emb"](places)
        mask = None if real is None else real[:, None, None, :]
        layers: Any = self.attn_layers["layers"]
        for place in range(0, 2 * self.depth, 2):
            norm, attention = layers[place]
            h = h + attention(norm(h), mask)
            norm, forward = layers[place + 1]
            h = h + forward(norm(h))
        return self.norm(h)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_k = nn.Linear(width, heads * dim_head, bias=False)
        self.to_v = nn.Linear(width, heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            project(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = softmax_attention(q, k, v, mask)
        return self.to_out(out.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        enter = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.net = nn.Sequential(enter, nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h)
