"""The way down of Stable Diffusion's U-Nets, which the copies that control them have too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.networks.layers.encoder import Encoder
from sfumato.networks.layers.spatial_transformer import SpatialTransformer


@dataclass(eq=False, repr=False)
class SDEncoder(Encoder):
    """An encoder with transformers where others have attention, told pooled text through two layers.

    A network derives from it, has these settings as its first, calls `check` before anything is allocated
    and `tell` once the rest is built. Pooled text, where it takes any, must be told.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752;
    Podell et al. 2023, "SDXL", arXiv:2307.01952.
    """

    in_channels: int = 4
    channels: int = 64
    multipliers: tuple[float, ...] = (1, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (2, 4)
    depth: int | tuple[int, ...] = 1
    heads: int = 8
    head_channels: int = 0
    tokens: int = 0
    linear_projection: bool = False
    cross_only: tuple[int, ...] = ()
    vector: int = 0
    classes: int = 0
    dropout: float = 0.0

    def tell(self) -> None:
        """Make the layers that take the condition's vector."""
        if self.vector:
            width = 4 * self.channels
            layers = nn.Sequential(nn.Linear(self.vector, width), nn.SiLU(), nn.Linear(width, width))
            # Twice wrapped, for the names of the published files: label_emb.0.0 and label_emb.0.2.
            self.label_emb, self.labels, self.must_be_told = nn.Sequential(layers), self.vector, True

    def _label(self, vector: Tensor) -> Tensor:
        assert self.label_emb is not None
        return self.label_emb(vector) if self.vector else super()._label(vector)

    def _attention(self, channels: int, factor: int | None) -> Sequence[nn.Module]:
        """A transformer where it is wanted; always in the middle (no factor)."""
        if factor is not None and factor not in self.attention:
            return []
        level = -1 if factor is None else factor.bit_length() - 1
        heads = channels // self.head_channels if self.head_channels else self.heads
        twice = factor in self.cross_only
        return [
            SpatialTransformer(
                channels, heads, self._depths[level], self.tokens, self.linear_projection, twice
            )
        ]

    @property
    def _depths(self) -> tuple[int, ...]:
        """Transformer blocks of every level."""
        return (self.depth,) * len(self.multipliers) if isinstance(self.depth, int) else self.depth

    def check(self) -> None:
        """Raises InvalidInput, before anything is allocated, if the settings fit no network."""
        levels = len(self.multipliers)
        if self.vector and self.classes:
            raise InvalidInput("a vector is taken by two layers or by a table, not both", where="vector")
        if len(self._depths) != levels:
            raise InvalidInput(f"{len(self._depths)} depths for {levels} levels", where="depth")
        if set(self.cross_only) - set(self.attention):
            raise InvalidInput("a factor at which nothing attends", where="cross_only")
        for number, multiplier in enumerate(self.multipliers):
            attended, middle = 2**number in self.attention, number == levels - 1
            width = int(multiplier * self.channels)
            if not attended and not middle:
                continue
            if self._depths[number] < 1:
                raise InvalidInput(f"no transformer block at factor {2**number}", where="depth")
            if width % (self.head_channels or self.heads):
                raise InvalidInput(
                    f"{width} channels do not fall into "
                    + (f"heads of {self.head_channels}" if self.head_channels else f"{self.heads} heads"),
                    where="head_channels" if self.head_channels else "heads",
                )
