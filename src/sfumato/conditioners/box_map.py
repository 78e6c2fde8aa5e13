"""Box map: which objects the picture is to show, drawn where they are to stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.beside import Beside, asked_size, refuse_unheard
from sfumato.conditioners.layouts import (
    PARTS,
    Box,
    each_of,
    meet,
    object_of,
    read,
    refuse_namesakes,
    shown_of,
    single,
)
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


@dataclass(eq=False, repr=False)
class BoxMap(Beside):
    """Labelled boxes as channels beside x: each box filled with the vector of its label.

        c(place) = Σ_boxes v(label) · (share of the place that lies in the box)

    Vectors v are learnt with the network, which sees at every place what is to stand there. Tokens of boxes
    (`boxes`) have to be told apart from their numbers and want far longer training; these are obeyed within
    minutes. The null is no object: zeros.

    Boxes are told as to `boxes`: parts of the whole scene, of which a crop may be shown.

    Args:
        names: what there is, the labels of objects.
        channels: length of a label's vector.

    Raises:
        InvalidInput: settings that are none; when told, unknown labels or boxes that are none.
    """

    names: list[str] = field(default_factory=list)
    channels: int = 16

    inputs = ("boxes", "boxes_crop", "size")
    lists = ("boxes", "boxes_crop")
    kept = ("size",)
    pictures = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_namesakes(self.names, "box_map.names")
        if self.channels < 1:
            raise InvalidInput(f"{self.channels} channels", where="box_map.channels")
        self.index = {name: number for number, name in enumerate(self.names)}
        self.vectors = nn.Embedding(len(self.names), self.channels)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Names by input, as of other conditioners."""
        return {"boxes": self.names}

    @property
    def shares(self) -> dict[str, int | None]:
        """The length of a label's vector."""
        return {"channels": self.channels}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """Layouts, one for all rows or a list with one a row → channels (count, channels, h, w).

        A layout is a list of {"label": "apple", "box": [x0, y0, width, height]}, or such a list as JSON, or
        None for no object; a crop is [x0, y0, width, height]. The size is the picture's, (height, width).
        """
        size = asked_size(inputs)
        if size is None:
            raise InvalidInput("boxes are parts of a picture whose size is not told", where="size")
        step = self.space.step
        places = self._places(size[0] + -size[0] % step, size[1] + -size[1] % step)
        layouts, crops = (each_of(count, name, inputs.get(name), part) for name, part in PARTS.items())
        rows = [self._drawn(self._things(*pair), places) for pair in zip(layouts, crops, strict=True)]
        return Condition(channels=torch.stack(rows))

    def null(self, condition: Condition) -> Condition:
        """No object."""
        assert condition.channels is not None
        return Condition(channels=torch.zeros_like(condition.channels))

    def size_of(self, **inputs: Any) -> None:
        """Boxes are of no size."""

    def check(self, **inputs: Any) -> None:
        """Refuse unknown labels and boxes that are none, before any work."""
        refuse_unheard(inputs, self.inputs)
        for name, part in PARTS.items():
            given: Any = inputs.get(name)
            for row in [given] if single(given, part) else given:
                self._things(**{"layout" if name == "boxes" else "crop": row})

    def _things(self, layout: Any = None, crop: Any = None) -> list[tuple[int, Box]]:
        """Labels by number and boxes as parts of what is shown, of those of which something is."""
        (x, y, width, height), things = (shown := shown_of(crop)), []
        for thing in [] if layout is None else read("boxes", layout):
            label, box = object_of(thing, self.index)
            if meet(box, shown):
                seen = ((box[0] - x) / width, (box[1] - y) / height, box[2] / width, box[3] / height)
                things.append((self.index[label], seen))
        return things

    def _drawn(self, things: list[tuple[int, Box]], places: tuple[int, int]) -> Tensor:
        weights = self.vectors.weight
        drawn = weights.new_zeros(self.channels, *places)
        for label, (x, y, width, height) in things:
            down, across = _shares(y, height, places[0]), _shares(x, width, places[1])
            share = (down[:, None] * across).to(weights)
            drawn = drawn + weights[label][:, None, None] * share
        return drawn


def _shares(start: float, length: float, places: int) -> Tensor:
    """The part of each place of a side that lies between start and start + length, (places,)."""
    edges = torch.arange(places + 1, dtype=torch.float64)
    low, high = edges[:-1].clamp_min(start * places), edges[1:].clamp_max((start + length) * places)
    return (high - low).clamp(0, 1)
