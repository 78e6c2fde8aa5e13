"""Alpha: what is object and what is ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.control.detectors.reading import levels, opencv, seen
from sfumato.core.errors import InvalidInput

_TRIED = 256
"""Places of the edge whose colours may be the ground's."""


@dataclass(frozen=True)
class Alpha:
    """The mask of what a picture shows, white, on its ground, black.

    Of a picture with transparency it is the alpha, and of any tensor of four channels; of masks (n, H, W)
    bool all that belongs to any of them.
    Of an opaque one it is what is left of the frame when the ground is poured out from its edge: all pixels
    of nearly the commonest colour of the edge that hang together with it. What the object encloses stays its
    own, eyes as well as holes.

    Args:
        tolerance: how far, of the whole range, the lightest or darkest ground may be from its commonest
            colour, in any of red, green and blue.
        plain: the least share of the edge that ground must hold for an opaque picture to have one.

    Raises:
        InvalidInput: a tolerance that is none; an opaque picture that stands on no plain ground.
        MissingExtra: OpenCV is not installed, which opaque pictures need.
    """

    tolerance: float = 0.04
    plain: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1 or not 0 <= self.plain <= 1:
            raise InvalidInput("tolerance and plain are shares", where="alpha", do="give 0 to 1")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path, an image, or masks (n, H, W) or (H, W) → (1, H, W) in [-1, 1]."""
        if isinstance(given, Tensor) and given.dtype == torch.bool:
            if given.ndim not in (2, 3) or not given.numel():
                raise InvalidInput(f"masks {tuple(given.shape)}", where="alpha", do="give (n, height, width)")
            whole = given.cpu() if given.ndim == 2 else given.cpu().any(0)
            return whole[None].float() * 2 - 1
        picture = seen(given, "alpha")
        # A file may have a channel of transparency and say nothing by it; who lays a fourth one means it.
        if len(picture) == 4 and (isinstance(given, Tensor) or bool((picture[3] < 1).any())):
            return picture[3:]
        return self._poured(picture[:3])

    def _poured(self, picture: Tensor) -> Tensor:
        """The mask of an opaque picture."""
        array, limit = torch.from_numpy(levels(picture)).int(), 255 * self.tolerance
        edge = _edge(array)
        # Exact colours seldom come twice where there is any noise: which one has the most others near it?
        tried = edge[:: -(-len(edge) // _TRIED)]
        near = ((edge[None] - tried[:, None]).abs() <= limit).all(2)
        best = near.sum(1).argmax()
        if float(near[best].float().mean()) < self.plain:
            raise InvalidInput(
                "the picture stands on no plain ground",
                where="alpha",
                do="give one with transparency, or masks",
            )
        color = edge[near[best]].median(0).values
        alike = ((array - color).abs() <= limit).all(2).to(torch.uint8)
        # Of four neighbours: an outline one pixel wide keeps the ground out.
        _, pieces = opencv().connectedComponents(alike.numpy(), connectivity=4)
        pieces = torch.from_numpy(pieces)
        outer = torch.unique(_edge(pieces))
        ground = torch.isin(pieces, outer[outer > 0])
        return 1 - 2 * ground[None].float()


def _edge(array: Tensor) -> Tensor:
    """The outermost places of (H, W, ..), one after another."""
    return torch.cat((array[0], array[-1], array[1:-1, 0], array[1:-1, -1]))
