"""What benchmarks/control.py measures: whether a picture follows its hint, and still its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.control.detectors.alpha import Alpha
from sfumato.control.detectors.canny import Canny
from sfumato.control.detectors.scribble import Scribble
from sfumato.control.detectors.thinning import thinned
from sfumato.core.errors import InvalidInput

_WHITE = 0.86  # in [-1, 1]: darker than this in any channel is no ground
_REACH = 0.0075  # of the diagonal: how far beside it an edge may lie; at 64 pixels not one pixel


def edge_scores(asked: Tensor, made: Tensor) -> list[float]:
    """F1 of edges (B, 1, H, W) asked for and those of pictures made (B, 3, H, W).

    Precision is the share of edges made that are near one asked for, recall of those asked for that are near
    one made (as the Berkeley benchmark counts, Martin, Fowlkes & Malik 2004, at its tolerance, but without
    its matching).
    """
    detect = Canny()
    return [_f1(hint, detect(picture) > 0) for hint, picture in zip(asked > 0, made, strict=True)]


def stroke_scores(asked: Tensor, made: Tensor) -> list[float]:
    """Likewise of the middles of scribbled strokes and the lines that are found in pictures as those were."""
    detect = Scribble(thinnest=1.0, thickest=1.0)
    return [
        _f1(thinned(hint), detect(picture) > 0) for hint, picture in zip(asked[:, 0] > 0, made, strict=True)
    ]


def _f1(asked: Tensor, made: Tensor) -> float:
    right, told = (made & _near(asked)).sum(), (asked & _near(made)).sum()
    precision = float(right / made.sum().clamp_min(1))
    recall = float(told / asked.sum().clamp_min(1))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def mask_scores(asked: Tensor, made: Tensor) -> list[float]:
    """IoU of masks asked for (B, 1, H, W) and what is no ground of pictures (B, 3, H, W)."""
    found = []
    for hint, picture in zip(asked > 0, made, strict=True):
        solid = solid_of(picture)
        found.append(float((hint & solid).sum() / (hint | solid).sum().clamp_min(1)))
    return found


def centre_scores(centres: Sequence[Sequence[tuple[float, float]]], made: Tensor) -> list[float]:
    """Share of asked centres that a thing of its own stands on, picture by picture.

    Args:
        centres: of the things of each picture, as shares of width and height.
        made: (B, 3, H, W), things apart on white.
    """
    found = []
    for wanted, picture in zip(centres, made, strict=True):
        pieces = _pieces(solid_of(picture)[0])
        height, width = pieces.shape
        met = [
            int(pieces[min(int(y * height), height - 1), min(int(x * width), width - 1)]) for x, y in wanted
        ]
        own = [piece for piece in met if piece and met.count(piece) == 1]
        found.append(len(own) / len(wanted))
    return found


def box_scores(asked: Sequence[Sequence[Sequence[float]]], made: Tensor) -> list[float]:
    """Of each picture, the mean over asked boxes of the IoU with the nearest box around a thing.

    Args:
        asked: boxes (left, top, width, height) as shares of the sides, of the things of each picture.
        made: (B, 3, H, W), things apart on white.
    """
    found = []
    for boxes, picture in zip(asked, made, strict=True):
        pieces = _pieces(solid_of(picture)[0])
        height, width = pieces.shape
        around = []
        for number in range(1, int(pieces.max()) + 1):
            rows, columns = (pieces == number).nonzero().T
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            around.append([float(edge) / side for edge, side in zip(box, (width, height) * 2, strict=True)])
        best = (max((_overlap((x, y, x + w, y + h), a) for a in around), default=0.0) for x, y, w, h in boxes)
        found.append(sum(best) / len(boxes))
    return found


def solid_of(picture: Tensor) -> Tensor:
    """What of a picture (3, H, W) is no ground, (1, H, W) bool; without a plain edge, what is not white."""
    try:
        return Alpha()(picture) > 0
    except InvalidInput:
        return (picture < _WHITE).any(0, keepdim=True)


def _near(edges: Tensor) -> Tensor:
    """Edges and what counts as the same place."""
    reach = int(_REACH * math.hypot(*edges.shape[-2:]))
    return F.max_pool2d(edges.float()[None], 2 * reach + 1, 1, reach)[0] > 0


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    both = max(sides[0], 0.0) * max(sides[1], 0.0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (sum(areas) - both)


def _pieces(solid: Tensor) -> Tensor:
    """(H, W) numbers of the pieces that hang together, 0 where there is none."""
    import cv2

    _, pieces = cv2.connectedComponents(solid.to(torch.uint8).numpy(), connectivity=8)
    return torch.from_numpy(pieces)
