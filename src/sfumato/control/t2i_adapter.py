"""T2I-Adapter: a small network that reads a hint alone; its maps go along with the features down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up

_XL: dict[str, Any] = {"kind": "full_xl", "unshuffle": 16, "stages": (3, 5, 8, 9)}

PUBLISHED: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd1_grey": {"hint_channels": 1},
    "sd1_light": {"kind": "light", "channels": (320, 640, 1280), "blocks": 4},
    "sdxl": _XL,
    "sdxl_grey": {**_XL, "hint_channels": 1},
}
"""Settings of the published adapters; those of edges and sketches are of one channel."""


@dataclass(eq=False, repr=False)
class T2IAdapter(nn.Module):
    """Residual blocks over a hint's pixels, and four maps of what they make of it.

        F_0 = body_0(conv(unshuffle(hint))),  F_i = body_i(halve(F_(i-1)));   h_s += F_i at stages s

    The maps are added to what a stage of the U-Net makes, once the stage is done: the stages after it are
    shown the sum, and so is the way up, where a ControlNet's residuals are shown to the way up alone. Neither
    x nor the time nor the text is read, so that one reading would do for a whole walk. State-dict names are
    those of the released files.

    Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
    Diffusion Models", arXiv:2302.08453, section 3.3.

    Args:
        kind: "full"; "full_xl", which halves once alone, before the third map; or "light", whose blocks are a
            quarter as wide, and halve before the last map once more.
        channels: of the maps; of "light" the last counts twice.
        blocks: residual blocks a map.
        unshuffle: side of the squares of pixels that are channels at first.
        hint_channels: of the hint, a picture in [0, 1].
        stages: numbers of the U-Net's stages on the way down whose features the maps are added to; one more
            than there are is the middle.

    Raises:
        InvalidInput: settings that are none; hints and networks that do not fit.
    """

    kind: Literal["full", "full_xl", "light"] = "full"
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    unshuffle: int = 8
    hint_channels: int = 3
    stages: tuple[int, ...] = (2, 5, 8, 11)

    @staticmethod
    def published(name: str) -> T2IAdapter:
        """One with the settings of published weights, by a name of PUBLISHED such as "sdxl"."""
        return T2IAdapter(**look_up(PUBLISHED, name, "published adapter"))

    @staticmethod
    def of(network: nn.Module, hint_channels: int = 3, factor: int = 8) -> T2IAdapter:
        """A fresh full adapter of a U-Net, with a map for the end of each of its levels.

        Args:
            network: the U-Net.
            hint_channels: of the hint.
            factor: how many pixels of the hint, along a side, make one place of x.
        """
        each, levels = getattr(network, "blocks", 0) + 1, len(getattr(network, "multipliers", ()))
        stages = tuple(each * level + each - 1 for level in range(levels))
        have: Any = getattr(network, "widths", ())
        channels: tuple[int, ...] = tuple(have[stage] for stage in stages)
        if not channels:
            raise InvalidInput(f"a {type(network).__name__} has no adapter of this kind", where="t2i_adapter")
        made = T2IAdapter("full", channels, 2, factor, hint_channels, stages)
        like = next(network.parameters())
        return made.to(device=like.device, dtype=like.dtype)

    def __post_init__(self) -> None:
        super().__init__()
        widths = self.channels if self.kind != "light" else (*self.channels, *self.channels[-1:])
        if not widths or min(*widths, self.blocks, self.unshuffle, self.hint_channels) < 1:
            raise InvalidInput("channels and all sizes are whole numbers from 1", where="t2i_adapter")
        if len(self.stages) != len(widths):
            raise InvalidInput(
                f"{len(self.stages)} stages for {len(widths)} maps", where="t2i_adapter.stages"
            )
        if self.kind == "full_xl" and (self.unshuffle % 2 or len(widths) < 3):
            raise InvalidInput("takes three maps or more of an even number of pixels", where="t2i_adapter")
        seen = self.hint_channels * self.unshuffle**2
        halved = (2,) if self.kind == "full_xl" else range(1, len(widths))
        body: list[nn.Module] = []
        here = seen if self.kind == "light" else widths[0]
        for place, width in enumerate(widths):
            if self.kind == "light":
                body.append(_Thin(here, width, self.blocks, place in halved))
            else:
                body.append(_Block(here, width, place in halved))
                body += [_Block(width, width) for _ in range(self.blocks - 1)]
            here = width
        if self.kind != "light":
            self.conv_in = nn.Conv2d(seen, widths[0], 3, padding=1)
        self.body = nn.ModuleList(body)
        self.widths = widths

    @property
    def factor(self) -> int:
        """How many pixels of the hint, along a side, make one place of x."""
        return self.unshuffle // 2 if self.kind == "full_xl" else self.unshuffle

    def check_fits(self, network: nn.Module) -> None:
        """InvalidInput where the network's stages are of other widths than the maps."""
        have = list(getattr(network, "widths", ()))
        found = tuple((have + have[-1:])[stage] for stage in self.stages if stage <= len(have))
        if not have or found != self.widths:
            what = (
                f"an adapter with maps of {self.widths} channels for a {type(network).__name__} with {found}"
            )
            raise InvalidInput(what, where="t2i_adapter", do="take one made for this kind of model")

    def forward(self, x: Tensor, time: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """What is added to the features of the stages, in their order; of the hint alone.

        Args:
            x: (B, C, H, W), of which the shape alone matters.
            time: (B,).
            condition: what the network is told.
            hint: (B, hint_channels, factor · H, factor · W).
        """
        wanted = (len(x), self.hint_channels, *(self.factor * side for side in x.shape[2:]))
        if tuple(hint.shape) != wanted:
            raise InvalidInput(f"expected a hint {wanted}, got {tuple(hint.shape)}", where="hint")
        return tuple(self.maps(hint))

    def maps(self, hint: Tensor) -> Iterator[Tensor]:
        """Hint (B, hint_channels, H, W) → its maps, one after another."""
        weight = next(self.parameters())
        h = F.pixel_unshuffle(hint.to(device=weight.device, dtype=weight.dtype), self.unshuffle)
        if self.kind != "light":
            h = self.conv_in(h)
        each = 1 if self.kind == "light" else self.blocks
        for number, block in enumerate(self.body, 1):
            h = block(h)
            if number % each == 0:
                yield h


class _Block(nn.Module):
    """h += block2(relu(block1(h))), after the map is halved and brought to the width, where it is to be."""

    def __init__(self, here: int, width: int, halved: bool = False) -> None:
        super().__init__()
        self.halved = halved
        self.in_conv = nn.Conv2d(here, width, 1) if here != width else None
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        h = _half(h) if self.halved else h
        h = h if self.in_conv is None else self.in_conv(h)
        return h + self.block2(F.relu(self.block1(h)))


class _Thin(nn.Module):
    """Residual blocks a quarter as wide as the map that comes out."""

    def __init__(self, here: int, width: int, blocks: int, halved: bool) -> None:
        super().__init__()
        self.halved, inner = halved, width // 4
        self.in_conv = nn.Conv2d(here, inner, 1)
        names = ("block1", "block2")
        self.body = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv2d(inner, inner, 3, padding=1) for name in names})
            for _ in range(blocks)
        )
        self.out_conv = nn.Conv2d(inner, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.in_conv(_half(h) if self.halved else h)
        for pair in self.body:
            h = h + pair["block2"](F.relu(pair["block1"](h)))  # type: ignore[index]
        return self.out_conv(h)


def _half(h: Tensor) -> Tensor:
    """Means of squares of two by two; at an odd side's end, of what is there."""
    return F.avg_pool2d(h, 2, ceil_mode=True)
