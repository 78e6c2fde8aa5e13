"""Box map: which objects the picture is to show, drawn where they are to stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.beside import Beside, asked_size, refuse_unheard
from sfumato.conditioners.layouts import check_layouts, refuse_namesakes, seen, told
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
        rows = [self._drawn(*pair, places) for pair in told(count, inputs)]
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
        check_layouts(inputs, lambda layout, crop: seen(layout, crop, self.index))

    def _drawn(self, layout: Any, crop: Any, places: tuple[int, int]) -> Tensor:
        weights = self.vectors.weight
        drawn = weights.new_zeros(self.channels, *places)
        things, (left, top, wide, high) = seen(layout, crop, self.index)
        for label, (x, y, width, height), _ in things:
            down = _shares((y - top) / high, height / high, places[0])
            across = _shares((x - left) / wide, width / wide, places[1])
            share = (down[:, None] * across).to(weights)
            drawn = drawn + weights[self.index[label]][:, None, None] * share
        return drawn


def _shares(start: float, length: float, places: int) -> Tensor:
    """The part of each place of a side that lies between start and start + length, (places,)."""
    edges = torch.arange(places + 1, dtype=torch.float64)
    low, high = edges[:-1].clamp_min(start * places), edges[1:].clamp_max((start + length) * places)
    return (high - low).clamp(0, 1)
