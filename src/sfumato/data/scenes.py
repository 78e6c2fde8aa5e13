"""Scenes: a few emoji composed on a ground, with exact boxes, masks, paint order and a true caption."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Drawing, Emoji
from sfumato.data.item import Item, distinct, hash_of, position
from sfumato.data.picture import fit, to_bytes, to_image
from sfumato.data.wording import styled_as

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, right and bottom exclusive."""

CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")

_CHOICES = {
    "label": ("category", "concept"),
    "split": ("train", "held_out"),
    "wording": ("name", "varied"),
    "ground": ("colored", "white"),
}

RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind", "close to")
"""What captions say of two objects."""

# "a sun behind rain cloud behind a tree" would say two things at once.
_AMBIGUOUS = re.compile(r"\b(left|right|above|below|behind|close|front)\b")
_SOLID = 128  # alpha from which a pixel belongs to the object
_LEAST_VISIBLE = 0.5
_MANY_TRIES = 40


class Placed(NamedTuple):
    """An object of a scene: drawing, box, all its pixels, those that are seen (both (H, W) bool), and itself
    alone on black.
    """

    drawing: Drawing
    box: Box
    whole: Tensor
    mask: Tensor
    layer: Image.Image


@dataclass
class Scenes:
    """Composed scenes of one to four emoji, made when asked for; the same index and seed make the same scene.

    Inputs:
        caption: e.g. "a red apple left of a cat and a kite above the cat". Relations are from the viewer and
            hold of the boxes: "left of", "above" and their opposites mean that the boxes are apart along that
            axis, "in front of" and "behind" that the one hides pixels of the other, "close to" that boxes
            overlap and nothing is hidden.
        objects: one dictionary each, in the order of painting: concept, style, category, box (x0, y0, x1, y1
            as fractions of width and height; the whole object, hidden parts too), order (0 is painted first).
        boxes: the same as the conditioner of this name is told: label, and box as left, top, width, height.
        semantic_map: (H, W) int64: 0 is the ground, then the labels in order.
        mask: (n, H, W) bool, the visible pixels of each object.
        whole: (n, H, W) bool, all its pixels, those that others hide too.
        layers: (n, 3, H, W) float32 in [-1, 1], its colours on black, those that others hide too.
        depth: (H, W) float32 pseudo-depth by paint order: 0 is the ground, 1 the object painted last.

    At least half of every object is visible. A pixel belongs to an object where its alpha is at least a half.

    Args:
        count: number of scenes.
        size: height and width.
        fewest, most: number of objects, 1 to 4.
        styles: "noto", "fluent 3d"; one of them a scene.
        split: "train" composes the concepts that are not held out.
        categories: of the emoji used.
        concepts: only these; None is all of the categories.
        label: what boxes are labelled with and the semantic map tells apart, "category" or "concept".
        wording: "name", captions say objects and relations; or "varied", most of them the style as well.
        ground: "colored", plain or a gradient, or "white", as single emoji stand on.
        apart: no box overlaps another, so that all relations are of left and right, above and below.
        fixed: the same scenes at every look, of which only the wording changes, so that latents can be kept.

    Raises:
        InvalidInput: a count below 1, a size below 16, or numbers of objects outside 1..4.
        NotFound: unknown styles, categories or concepts.
    """

    count: int = 10000
    size: int = 64
    fewest: int = 1
    most: int = 4
    styles: tuple[str, ...] = ("noto", "fluent 3d")
    split: Literal["train", "held_out"] = "train"
    categories: tuple[str, ...] | None = CATEGORIES
    concepts: tuple[str, ...] | None = None
    label: Literal["category", "concept"] = "category"
    wording: Literal["name", "varied"] = "name"
    ground: Literal["colored", "white"] = "colored"
    apart: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        for field, known in _CHOICES.items():
            if (given := getattr(self, field)) not in known:
                raise InvalidInput(f"{given!r} is no {field}", where=f"scenes.{field}", do=" or ".join(known))
        if self.count < 1 or self.size < 16:
            raise InvalidInput("needs a count of 1 and a size of 16 or more", where="scenes")
        if not 1 <= self.fewest <= self.most <= 4:
            raise InvalidInput("fewest and most are numbers of objects from 1 to 4", where="scenes")
        self.sets = [
            Emoji((style,), split=self.split, concepts=self.concepts, categories=self.categories)
            for style in self.styles
        ]
        for part in self.sets:
            part.drawings = [d for d in part.drawings if not _AMBIGUOUS.search(d.concept)]
        if not self.sets or min(map(len, self.sets)) < self.most:
            raise InvalidInput("fewer concepts than objects in a scene", where="scenes.concepts")
        used = distinct(getattr(drawing, self.label) for part in self.sets for drawing in part.drawings)
        named = (self.categories or sorted(used)) if self.label == "category" else used
        self._ground_first = ["ground", *named]
        self._cut: dict[tuple[int, int], Image.Image] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The scene of an index and a seed."""
        index = position(index, self.count, "scenes")
        chance = random.Random(f"scene:{0 if self.fixed else seed}:{index}")
        wording = random.Random(f"said:{seed}:{index}") if self.fixed else chance
        number = self.fewest + _below(chance, self.most - self.fewest + 1)
        style = _below(chance, len(self.sets))
        which: list[int] = []
        while len(which) < number:
            candidate = _below(chance, len(self.sets[style]))
            if candidate not in which:
                which.append(candidate)
        canvas = _ground(chance, self.size)
        if self.ground == "white":
            canvas.paste((255, 255, 255), (0, 0, self.size, self.size))
        placed = self._compose(chance, canvas, style, which)
        n, side = len(placed), self.size
        depth, kinds = torch.zeros(side, side), torch.zeros(side, side, dtype=torch.int64)
        objects, boxes = [], []
        for order, thing in enumerate(placed):
            depth[thing.mask] = (order + 1) / n
            known = {key: getattr(thing.drawing, key) for key in ("concept", "style", "category")}
            kinds[thing.mask] = self._ground_first.index(known[self.label])
            x0, y0, x1, y1 = (edge / side for edge in thing.box)
            objects.append({**known, "box": (x0, y0, x1, y1), "order": order})
            boxes.append({"label": known[self.label], "box": [x0, y0, x1 - x0, y1 - y0]})
        caption = _caption(wording, placed)
        if self.wording == "varied":
            caption = styled_as(caption, self.styles[style], wording.random(), wording.random())
        inputs: dict[str, Any] = {
            "caption": caption,
            "objects": objects,
            "boxes": boxes,
            "mask": torch.stack([thing.mask for thing in placed]),
            "whole": torch.stack([thing.whole for thing in placed]),
            "layers": torch.stack([to_image(to_bytes(thing.layer)) for thing in placed]),
            "semantic_map": kinds,
            "depth": depth,
        }
        return Item(to_image(to_bytes(canvas)), inputs)

    def labels(self, key: str) -> list[str]:
        """The names that an input is made of, in order: of "boxes" their labels, of "semantic_map" what its
        numbers mean, of "caption" the phrases that captions are put together from.
        """
        drawings = [drawing for part in self.sets for drawing in part.drawings]
        if key == "semantic_map":
            return list(self._ground_first)
        if key == "boxes":
            return self._ground_first[1:]
        if key == "caption":
            said = [*self.styles, "style"] if self.wording == "varied" else []
            things = (f"{d.article} {d.concept}" for d in drawings)
            return distinct([*RELATIONS, "and", ",", "the", *said, *things])
        return distinct(getattr(drawing, key, None) for drawing in drawings)

    def fingerprint(self) -> str:
        """SHA-256 of the emoji used and the settings."""
        return hash_of(self, [part.fingerprint() for part in self.sets])

    def _compose(
        self, chance: random.Random, canvas: Image.Image, style: int, which: list[int]
    ) -> list[Placed]:
        """Paint the objects onto the canvas, each where it leaves half of every earlier one to be seen."""
        placed: list[Placed] = []
        low, high = ((0.45, 0.8), (0.38, 0.58), (0.32, 0.48), (0.28, 0.44))[len(which) - 1]
        for candidate in which:
            drawing = self.sets[style].drawings[candidate]
            for attempt in range(_MANY_TRIES):
                shrink = 1 - attempt / (2 * _MANY_TRIES)
                side = max(6, round(self.size * shrink * (low + (high - low) * chance.random())))
                cut = self._cut_out(style, candidate, side)
                left = _below(chance, self.size - cut.width + 1)
                top = _below(chance, self.size - cut.height + 1)
                solid = torch.zeros(self.size, self.size, dtype=torch.bool)
                alpha = to_bytes(cut.getchannel("A"))[0]
                solid[top : top + cut.height, left : left + cut.width] = alpha >= _SOLID
                covered = [thing._replace(mask=thing.mask & ~solid) for thing in placed]
                seen = all(t.mask.sum() >= _LEAST_VISIBLE * t.whole.sum() for t in covered)
                if solid.any() and seen and not (self.apart and _overlaps(_extent(solid), placed)):
                    canvas.paste(cut, (left, top), cut)
                    layer = Image.new("RGB", canvas.size)
                    layer.paste(cut, (left, top))
                    placed = [*covered, Placed(drawing, _extent(solid), solid, solid, layer)]
                    break
        return placed

    def _cut_out(self, style: int, candidate: int, side: int) -> Image.Image:
        """A drawing without its empty margin, its longer side scaled to a length."""
        key = (style, candidate)
        if key not in self._cut:
            own = self.sets[style].picture(candidate)
            self._cut[key] = own.crop(own.getchannel("A").getbbox())
        cut = self._cut[key]
        scale = side / max(cut.size)
        return fit(cut, (max(1, round(cut.height * scale)), max(1, round(cut.width * scale))))[0]


def _overlaps(box: Box, placed: list[Placed]) -> bool:
    return any(
        min(box[2], b[2]) > max(box[0], b[0]) and min(box[3], b[3]) > max(box[1], b[1]) for _, b, *_ in placed
    )


def relation(first: Placed, second: Placed) -> str:
    """What a viewer says of the first object beside the second.

    Where the boxes are apart along an axis that says it, by the wider gap; else who hides whom, if any.
    """
    a, b = first.box, second.box
    gaps = {"left of": b[0] - a[2], "right of": a[0] - b[2], "above": b[1] - a[3], "below": a[1] - b[3]}
    word = max(gaps, key=lambda name: gaps[name])
    if gaps[word] >= 0:
        return word
    if bool((first.mask & second.whole).any()):
        return "in front of"
    return "behind" if bool((second.mask & first.whole).any()) else "close to"


def _caption(chance: random.Random, placed: list[Placed]) -> str:
    """Objects in a random order of mention, each set in relation to one named before."""
    waiting = list(placed)
    mentioned = [waiting.pop(_below(chance, len(waiting)))]
    if not waiting:
        return _indefinite(mentioned[0])
    clauses: list[str] = []
    while waiting:
        thing = waiting.pop(_below(chance, len(waiting)))
        if clauses:
            other = mentioned[_below(chance, len(mentioned))]
            clauses.append(f"{_indefinite(thing)} {relation(thing, other)} the {other.drawing.concept}")
        else:
            other = mentioned[0]
            clauses.append(f"{_indefinite(thing)} {relation(thing, other)} {_indefinite(other)}")
        mentioned.append(thing)
    return " and ".join(part for part in (", ".join(clauses[:-1]), clauses[-1]) if part)


def _indefinite(thing: Placed) -> str:
    return f"{thing.drawing.article} {thing.drawing.concept}".strip()


def _ground(chance: random.Random, size: int) -> Image.Image:
    """A plain ground, or a gradient between two colours in one of eight directions."""
    colors = [[round(90 + 165 * chance.random()) for _ in range(3)] for _ in range(2)]
    direction = _below(chance, 8)
    if chance.random() < 0.5:
        return Image.new("RGB", (size, size), tuple(colors[0]))
    ramp = torch.linspace(0, 1, size)
    across, down = ((1, 0), (0, 1), (0.5, 0.5), (0.5, -0.5))[direction % 4]
    weight = across * ramp[None, :] + down * ramp[:, None] + (0.5 if down < 0 else 0)
    weight = 1 - weight if direction >= 4 else weight
    first, second = (torch.tensor(color, dtype=torch.float32) for color in colors)
    levels = first + weight[..., None] * (second - first)
    return Image.frombytes("RGB", (size, size), bytes(levels.round().to(torch.uint8).flatten().tolist()))


def _extent(solid: Tensor) -> Box:
    """The smallest box around the true pixels."""
    rows, columns = solid.any(1).nonzero().flatten(), solid.any(0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _below(chance: random.Random, count: int) -> int:
    """A whole number from 0 to count - 1, by the one method whose numbers Python promises to keep."""
    return int(chance.random() * count)
