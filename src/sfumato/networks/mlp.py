"""MLP: a network for points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site, name_sites
from sfumato.networks.layers.embedding import Fourier, sinusoid
from sfumato.networks.layers.normalization import zeroed


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.site = Site("", "residual")
        self.norm = nn.LayerNorm(width)
        self.told = nn.Linear(width, 2 * width)
        self.into = nn.Linear(width, width)
        self.back = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        scale, shift = self.told(context.embedding).chunk(2, dim=1)
        inner = nn.functional.silu(self.norm(h) * (1 + scale) + shift)
        return h + self.back(nn.functional.silu(self.into(inner)))


@dataclass(eq=False, repr=False)
class MLP(nn.Module):
    """Residual layers for points (B, dim), told the time and a vector by scale and shift.

    forward(x (B, dim), time (B,), condition) → (B, dim). For toy data in few dimensions, where everything
    about a method can be checked in seconds.

    Args:
        dim: of the points.
        width: of the layers.
        depth: residual blocks.
        classes: length of the condition's vector; 0 for none.
        fourier: standard deviation of random Fourier frequencies that tell the time, for times of order 1;
            0 for sinusoids, for times up to 1000.
    """

    dim: int = 2
    width: int = 128
    depth: int = 3
    classes: int = 0
    fourier: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()
        if self.fourier and self.width % 2:
            raise InvalidInput(f"sines and cosines need an even width, not {self.width}", where="mlp.width")
        self.features = Fourier(self.width // 2, self.fourier) if self.fourier else None
        self.time_embed = nn.Sequential(
            nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU()
        )
        self.label_emb = nn.Embedding(self.classes, self.width) if self.classes else None
        self.into = nn.Linear(self.dim, self.width)
        self.blocks = nn.ModuleList(_Block(self.width) for _ in range(self.depth))
        self.out = nn.Sequential(nn.LayerNorm(self.width), zeroed(nn.Linear(self.width, self.dim)))
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, dim) at time (B,) under a condition → (B, dim)."""
        if x.shape[1:] != (self.dim,):
            raise InvalidInput(f"points {tuple(x.shape)} for a network of dimension {self.dim}", where="x")
        if condition.vector is not None and condition.vector.shape[1] != self.classes:
            raise InvalidInput(
                f"a vector of {condition.vector.shape[1]} for a network of {self.classes} classes",
                where="vector",
            )
        for slot in ("tokens", "mask", "channels", "draft", "image_tokens", "residuals", "hints"):
            filled = getattr(condition, slot)
            if filled is not None and len(filled):
                raise InvalidInput("this network takes a vector only", where=slot)
        features = sinusoid(time, self.width) if self.features is None else self.features(time)
        embedding = self.time_embed(features.to(x))
        if self.label_emb is not None and condition.vector is not None:
            embedding = embedding + condition.vector.to(embedding) @ self.label_emb.weight
        context = Context(embedding, condition)
        h = self.into(x)
        for block in self.blocks:
            h = block(h, context)
        return self.out(h)
