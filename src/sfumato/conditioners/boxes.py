"""Boxes: which objects the picture is to show, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sfumato.conditioners.beside import refuse_unheard
from sfumato.conditioners.layouts import FLAGS, Box, check_layouts, refuse_namesakes, seen, told
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.layout import mirrored as mirrored
from sfumato.encoders.text_small import TextSmall
from sfumato.encoders.word_piece import WordPiece


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
        refuse_namesakes(self.names, "boxes.names")
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
        words = [self.words(*pair) for pair in told(count, inputs)]
        ids = torch.tensor(words, device=self.encoder.norm.weight.device)
        return Condition(tokens=self.encoder(ids))

    def null(self, condition: Condition) -> Condition:
        """No object in a whole picture, row for row."""
        return self(len(condition))

    def check(self, **inputs: Any) -> None:
        """Refuse unknown labels, boxes that are none and too many of them, before any work."""
        refuse_unheard(inputs, self.inputs)
        check_layouts(inputs, self.words)

    def words(self, layout: Any = None, crop: Any = None) -> list[int]:
        """The sentence that a layout is told in."""
        objects, shown = seen(layout, crop, self.index)
        triples = [(self._kind(label, thing), *self._corners(box)) for label, box, thing in objects]
        if len(triples) > self.objects:
            raise InvalidInput(f"{len(triples)} objects, and there is room for {self.objects}", where="boxes")
        if self.training:
            triples = [triples[i] for i in torch.randperm(len(triples)).tolist()]
        none = [self.vocabulary - 1] * 3 * (self.objects - len(triples))
        return [word for triple in triples for word in triple] + none + self._corners(shown)

    def _kind(self, label: str, thing: Any) -> int:
        bits = sum(1 << place for place, flag in enumerate(FLAGS) if thing.get(flag))
        return self.index[label] + len(self.names) * bits

    def _corners(self, box: Box) -> list[int]:
        side, (x, y, width, height) = math.isqrt(self.vocabulary), box
        ends = ((x, y), (x + width, y + height))
        return [round(b * (side - 1)) * side + round(a * (side - 1)) for a, b in ends]
