"""A judge of composed scenes: what stands where in a picture, and which of two things is in front.

A small network trained on real scenes names every pixel; which of two things is in front needs none, for it
is known how either would look. Generated pictures are judged by the same numbers as real ones, whose score is
the ceiling that the judge's own mistakes leave.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from fashion import ROOT
from torch import Tensor, nn

from sfumato.data.item import Item
from sfumato.data.scenes import Scenes
from sfumato.training.run_file import read

CONCEPTS: tuple[str, ...] = tuple(read(ROOT / "examples" / "train_semantic_map.yaml").data["concepts"])
"""What stands in the scenes: few enough that half an hour of one core teaches what each looks like."""

_SEEDS = 1 << 30
"""Scenes of the judge have seeds from here on: no model is trained on them."""


def scenes(size: int, fewest: int = 1, most: int = 4) -> Scenes:
    """Scenes of the few concepts, in one style."""
    return Scenes(1 << 20, size, fewest, most, ("noto",), concepts=CONCEPTS, label="concept")


NAMES = scenes(16).labels("semantic_map")
"""Of kinds, in order; the ground is the first."""


class Net(nn.Module):
    """A U-Net of two halvings: (B, 3, H, W) → logits of the kinds (B, len(NAMES), H, W)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def block(here: int, there: int) -> nn.Sequential:
            return nn.Sequential(
                *(nn.Conv2d(here, there, 3, padding=1), nn.GroupNorm(8, there), nn.SiLU()),
                *(nn.Conv2d(there, there, 3, padding=1), nn.GroupNorm(8, there), nn.SiLU()),
            )

        self.fine, self.middle, self.deep = (
            block(3, width),
            block(width, 2 * width),
            block(2 * width, 4 * width),
        )
        self.back_half = block(6 * width, 2 * width)
        self.back_fine = block(3 * width, width)
        self.out = nn.Conv2d(width, len(NAMES), 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(image)
        half = self.middle(F.avg_pool2d(fine, 2))
        deep = self.deep(F.avg_pool2d(half, 2))
        half = self.back_half(torch.cat((half, F.interpolate(deep, scale_factor=2.0)), 1))
        return self.out(self.back_fine(torch.cat((fine, F.interpolate(half, scale_factor=2.0)), 1)))


class SceneJudge:
    """The judge of what stands where, trained where its file is not there yet (5 minutes of a core)."""

    def __init__(self, size: int, file: Path, steps: int = 3000, batch: int = 16) -> None:
        self.kinds = Net()
        if not file.exists():
            torch.manual_seed(0)
            data = scenes(size)
            _train(self.kinds, lambda step: self._loss(data, step, batch), steps)
            torch.save(self.kinds.state_dict(), file)
        self.kinds.load_state_dict(torch.load(file, weights_only=True))
        self.kinds.eval()

    def _loss(self, data: Scenes, step: int, batch: int) -> Tensor:
        items = [data.load(step * batch + i, _SEEDS) for i in range(batch)]
        kinds = torch.stack([item.inputs["semantic_map"] for item in items])
        return F.cross_entropy(self.kinds(_soft(torch.stack([item.image for item in items]))), kinds)

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures (B, 3, H, W): what is no ground, (B, H, W) bool, and kinds (B, H, W)."""
        out = torch.cat([self.kinds(part) for part in images.split(50)])
        return out[:, 0] < out[:, 1:].logsumexp(1), out.argmax(1)


def _train(network: nn.Module, loss_of: Callable[[int], Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    mean = 0.0
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(step + 1, 100)
        if step % 100 == 99:
            print(f"judge: step {step + 1} of {steps}, {mean:.3f}", file=sys.stderr)


def _soft(image: Tensor) -> Tensor:
    """A little noise: generated pictures are not as clean as composed ones."""
    return image + 0.1 * torch.rand(len(image), 1, 1, 1) * torch.randn_like(image)


def box_scores(judge: SceneJudge, images: Tensor, items: Sequence[Item]) -> list[float]:
    """IoU of each asked box with that of the object drawn for it, 0 where there is none.

    Objects are the connected parts of what is not ground, so only scenes whose boxes lie apart can be asked.
    """
    scores = []
    for found, item in zip(judge.look(images)[0], items, strict=True):
        asked = [_corners(thing["box"], len(found)) for thing in item.inputs["boxes"]]
        parts = [_extent(part) for part in components(found) if part.sum() >= 6]
        for box in asked:
            scores.append(max((_iou(box, part) for part in parts), default=0.0))
    return scores


def map_scores(judge: SceneJudge, images: Tensor, items: Sequence[Item]) -> tuple[list[float], list[float]]:
    """Of each scene the IoU of objects with the asked, and the share of their pixels of the asked kind."""
    scores, kinds = [], []
    objects, seen = judge.look(images)
    for found, kind, item in zip(objects, seen, items, strict=True):
        asked = item.inputs["semantic_map"]
        scores.append(float((found & (asked > 0)).sum() / (found | (asked > 0)).sum().clamp_min(1)))
        kinds.append(float((kind == asked)[asked > 0].float().mean()))
    return scores, kinds


def order_scores(images: Tensor, items: Sequence[Item]) -> list[float]:
    """For each pair of which one thing hides the other: 1 if what is drawn there is nearer to the one that is
    in front than to the one behind, pixel by pixel, else 0. Both are known: scenes are composed of drawings.
    """
    scores = []
    for image, item in zip(images, items, strict=True):
        for front, back in hiding(item):
            zone = item.inputs["mask"][front] & item.inputs["whole"][back]
            off = [(image - item.inputs["layers"][which])[:, zone].square().mean() for which in (front, back)]
            scores.append(float(off[0] < off[1]))
    return scores


def hiding(item: Item) -> list[tuple[int, int]]:
    """The numbers of each pair of objects of which the first hides a tenth or more of the second."""
    masks, whole = item.inputs["mask"], item.inputs["whole"]
    return [
        (front, back)
        for back in range(len(masks))
        for front in range(back + 1, len(masks))
        if (masks[front] & whole[back]).sum() >= 0.1 * whole[back].sum()
    ]


def apart(item: Item) -> bool:
    """Whether no two boxes of a scene touch, with a pixel between them."""
    boxes = [_corners(thing["box"], item.image.shape[-1]) for thing in item.inputs["boxes"]]
    return all(
        a[2] + 1 < b[0] or b[2] + 1 < a[0] or a[3] + 1 < b[1] or b[3] + 1 < a[1]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def components(mask: Tensor) -> list[Tensor]:
    """The connected parts (4 neighbours) of a mask (H, W)."""
    labels = torch.where(mask, torch.arange(1, mask.numel() + 1).view(mask.shape), 0)
    while True:
        spread = labels
        for shift, dim in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            moved = labels.roll(shift, dim)
            edge = 0 if shift == 1 else -1
            moved.select(dim, edge).zero_()
            spread = torch.maximum(spread, moved)
        spread = torch.where(mask, spread, 0)
        if torch.equal(spread, labels):
            return [labels == label for label in labels.unique().tolist() if label]
        labels = spread


def _corners(box: Sequence[float], side: int) -> tuple[float, float, float, float]:
    x, y, width, height = (edge * side for edge in box)
    return x, y, x + width, y + height


def _extent(mask: Tensor) -> tuple[float, float, float, float]:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(across, 0.0) * max(down, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
