"""Boxes: which objects the picture is to show, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sfumato.conditioners.beside import refuse_unheard
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, nearest
from sfumato.data.layout import mirrored as mirrored
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece

Box = tuple[float, float, float, float]
"""Left, top, width and height, as parts of the whole picture's."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
FLAGS = ("group", "occluded", "depiction", "inside")
"""What may be said of an object beside its label: {"group": True}."""
_LEAST = 1e-4
_PARTS: dict[str, Any] = {"boxes": Mapping, "boxes_crop": (int, float)}


@dataclass(eq=False, repr=False)
class Boxes(nn.Module):
    """Labelled boxes as tokens of a transformer that learns with the network.

    A layout is a sentence of 3 · objects + 2 words out of a vocabulary V: for each object its kind and two
    corners of its box, top left and bottom right, then V - 1 where there are no more objects, then two
    corners of what the picture shows of the whole scene.

        corner(x, y) = round(y (n - 1)) · n + round(x (n - 1)),  n = ⌊√V⌋
        kind = label + names · (group + 2 occluded + 4 depiction + 8 inside)

    Objects are told in the order given, and while training in any order. Boxes are parts of the whole scene
    and cut at its edges; objects of which the crop shows nothing are left out. The null is the layout of no
    object in a whole picture.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    appendix E.2.1; tokens as Jahn, Rombach & Ommer 2021, arXiv:2105.06458. Their encoder: width 512, depth
    16, dim_head 64, logits.

    Args:
        names: what there is, the labels of objects.
        objects: room for so many.
        vocabulary: V.
        width: of the condition's tokens.
        depth: layers of the transformer.
        heads: of its attention.
        dim_head: numbers a head.
        logits: with the layer to words that published files have and nobody uses.

    Raises:
        InvalidInput: settings that are none; when told, unknown labels, boxes that are none, or too many.
    """

    names: list[str] = field(default_factory=list)
    objects: int = 30
    vocabulary: int = 8192
    width: int = 256
    depth: int = 4
    heads: int = 8
    dim_head: int = 32
    logits: bool = False

    inputs = lists = ("boxes", "boxes_crop")

    def __post_init__(self) -> None:
        super().__init__()
        if not self.names or len(set(self.names)) != len(self.names):
            raise InvalidInput("give a list of distinct names", where="boxes.names")
        if self.objects < 1 or len(self.names) << len(FLAGS) > self.vocabulary - 1:
            raise InvalidInput("too few words for the labels, or no object", where="boxes.vocabulary")
        self.index = {name: number for number, name in enumerate(self.names)}
        sizes = (self.width, self.depth, self.heads, self.dim_head, self.length)
        self.encoder = TextSmall(WordPiece(), *sizes, False, self.vocabulary, self.logits)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Names by input, as of other conditioners."""
        return {"boxes": self.names}

    @property
    def length(self) -> int:
        """Words of a layout."""
        return 3 * self.objects + 2

    @property
    def tokens(self) -> int:
        """Width of the condition's tokens."""
        return self.width

    @property
    def shares(self) -> dict[str, int | None]:
        """As many tokens as a layout has words."""
        return {"tokens": self.length}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """Layouts, one for all rows or a list with one a row → tokens (count, length, width).

        A layout is a list of {"label": "apple", "box": [x0, y0, width, height]}, or such a list as JSON, or
        None for no object; a crop is [x0, y0, width, height].
        """
        given = [_each(count, name, inputs.get(name), part) for name, part in _PARTS.items()]
        words = [self.words(*pair) for pair in zip(*given, strict=True)]
        ids = torch.tensor(words, device=self.encoder.norm.weight.device)
        return Condition(tokens=self.encoder(ids))

    def null(self, condition: Condition) -> Condition:
        """No object in a whole picture, row for row."""
        return self(len(condition))

    def check(self, **inputs: Any) -> None:
        """Refuse unknown labels, boxes that are none and too many of them, before any work."""
        refuse_unheard(inputs, self.inputs)
        for name, part in _PARTS.items():
            given: Any = inputs.get(name)
            for row in [given] if _single(given, part) else given:
                self.words(**{"layout" if name == "boxes" else "crop": row})

    def words(self, layout: Any = None, crop: Any = None) -> list[int]:
        """The sentence that a layout is told in."""
        shown = WHOLE if crop is None else _box(_read("boxes_crop", crop), "boxes_crop")
        triples = []
        for thing in [] if layout is None else _read("boxes", layout):
            kind, box = self._object(thing)
            if _meet(box, shown):
                triples.append((kind, *self._corners(box)))
        if len(triples) > self.objects:
            raise InvalidInput(f"{len(triples)} objects, and there is room for {self.objects}", where="boxes")
        if self.training:
            triples = [triples[i] for i in torch.randperm(len(triples)).tolist()]
        none = [self.vocabulary - 1] * 3 * (self.objects - len(triples))
        return [word for triple in triples for word in triple] + none + self._corners(shown)

    def _object(self, thing: Any) -> tuple[int, Box]:
        if not isinstance(thing, Mapping) or "label" not in thing or "box" not in thing:
            raise InvalidInput(
                f"{thing!r:.80} is no object", where="boxes", do='give {"label": NAME, "box": [x0, y0, w, h]}'
            )
        if unknown := set(thing) - {"label", "box", *FLAGS}:
            raise InvalidInput(f"nothing is known of {sorted(map(str, unknown))[0]!r}", where="boxes")
        if thing["label"] not in self.index:
            label = str(thing["label"])
            raise InvalidInput(f"unknown label {label!r}", where="boxes", do=nearest(label, self.names))
        bits = sum(1 << place for place, flag in enumerate(FLAGS) if thing.get(flag))
        return self.index[thing["label"]] + len(self.names) * bits, _box(thing["box"], "boxes")

    def _corners(self, box: Box) -> list[int]:
        side, (x, y, width, height) = math.isqrt(self.vocabulary), box
        ends = ((x, y), (x + width, y + height))
        return [round(b * (side - 1)) * side + round(a * (side - 1)) for a, b in ends]


def _read(name: str, given: Any) -> Any:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise InvalidInput(f"is no JSON: {error}", where=name) from error
    if not isinstance(given, list | tuple):
        raise InvalidInput(f"{given!r:.80} is no list", where=name)
    return given


def _box(given: Any, name: str) -> Box:
    """Cut at the edges of the whole."""
    numbers = list(given) if isinstance(given, list | tuple) else []
    good = len(numbers) == 4 and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    x, y, width, height = numbers if good else (0.0, 0.0, 0.0, 0.0)
    x0, y0, x1, y1 = (min(max(n, 0.0), 1.0) for n in (x, y, x + width, y + height))
    if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) <= _LEAST:
        raise InvalidInput(
            f"{given!r:.80} is no box in the picture",
            where=name,
            do="give left, top, width and height as parts of the whole, 0 to 1",
        )
    return x0, y0, x1 - x0, y1 - y0


def _meet(one: Box, other: Box) -> bool:
    return all(min(one[i] + one[i + 2], other[i] + other[i + 2]) > max(one[i], other[i]) for i in (0, 1))


def _single(given: Any, part: Any) -> bool:
    """Whether it is one value, itself a list of such parts, and not one a row."""
    return not isinstance(given, list | tuple) or not given or isinstance(given[0], part)


def _each(count: int, name: str, given: Any, part: Any) -> list[Any]:
    rows = [given] * count if _single(given, part) else list(given)
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} values for {count} pictures", where=name)
    return rows
