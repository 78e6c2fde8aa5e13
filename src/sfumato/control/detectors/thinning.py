"""Thinning: strokes brought to a width of one pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def thinned(mask: Tensor) -> Tensor:
    """The skeleton of a mask (H, W) bool: pixels are taken from its rim as long as nothing comes apart.

    Guo & Hall 1989, "Parallel Thinning with Two-Subiteration Algorithms", Communications of the ACM 32(3),
    algorithm A1: a pixel goes when its neighbours p2 .. p9, clockwise from the one above, make one piece,
    fill two or three of the pairs into which they can be put either way, and on the side whose turn it is lie
    open.
    """
    here, turn, still = mask.clone(), 0, 0
    while still < 2:
        gone = here & _removable(here, turn)
        here = here & ~gone
        still = 0 if bool(gone.any()) else still + 1
        turn = 1 - turn
    return here


def _removable(here: Tensor, turn: int) -> Tensor:
    height, width = here.shape
    padded = F.pad(here, (1, 1, 1, 1))
    places = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    p2, p3, p4, p5, p6, p7, p8, p9 = (padded[y : y + height, x : x + width] for y, x in places)
    pieces = torch.stack((~p2 & (p3 | p4), ~p4 & (p5 | p6), ~p6 & (p7 | p8), ~p8 & (p9 | p2))).sum(0)
    pairs = [
        torch.stack((a | b, c | d, e | f, g | h)).sum(0)
        for a, b, c, d, e, f, g, h in ((p9, p2, p3, p4, p5, p6, p7, p8), (p2, p3, p4, p5, p6, p7, p8, p9))
    ]
    filled = torch.minimum(*pairs)
    shut = (p6 | p7 | ~p9) & p8 if turn else (p2 | p3 | ~p5) & p4
    return (pieces == 1) & (filled >= 2) & (filled <= 3) & ~shut
