"""Grounding: boxes with what is in each, in words, for a control that shows them to a network (GLIGEN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sfumato.conditioners.beside import refuse_unheard
from sfumato.conditioners.layouts import check_layouts, seen, told
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


class Speaker(Protocol):
    """A conditioner of text that can say one text in one vector."""

    def whole(self, said: list[str]) -> Tensor: ...


@dataclass(eq=False, repr=False)
class Grounding(nn.Module):
    """Boxes and their words in the condition's image tokens; the words are read by the model's own text part.

    A row that is told no box has no object, and where no row is told any nothing is said. The null, and a
    negative prompt, is no object: what the control has learnt for none.

    Li et al. 2023, "GLIGEN", arXiv:2301.07093, section 4.

    Args:
        objects: room for so many.

    Raises:
        InvalidInput: when told, boxes that are none, no words, or too many objects; no text part beside it.
    """

    objects: int = 30

    inputs = ("boxes", "boxes_crop", "boxes_unsaid")
    kept = lists = ("boxes", "boxes_crop")

    def __post_init__(self) -> None:
        super().__init__()
        if self.objects < 1:
            raise InvalidInput("has room for no object", where="grounding.objects")
        # In a tuple: torch takes no module in it for one of the conditioner's own.
        self._heard: tuple[Speaker, ...] = ()

    @property
    def denied(self) -> dict[str, Any]:
        """A negative prompt says that what is kept is not said."""
        return {"boxes_unsaid": True}

    @property
    def shares(self) -> dict[str, int | None]:
        """None: the slot is its alone."""
        return {}

    def hear(self, speaker: Speaker | None) -> None:
        """Which conditioner reads the words: that of the model's prompts."""
        if speaker is None:
            raise InvalidInput(
                "no part beside it reads words", where="grounding", do="put it together with text"
            )
        self._heard = (speaker,)

    @torch.no_grad()
    def forward(self, count: int, **inputs: Any) -> Condition:
        """Layouts, one for all rows or a list with one a row → image tokens (count, objects, text + 5).

        A layout is a list of {"label": "a red apple", "box": [x0, y0, width, height]}, or such a list as
        JSON, or None for no object; boxes are parts of the whole.
        """
        if not self._heard:
            raise InvalidInput("stands beside no text, whose words it needs", where="grounding")
        rows = [self._objects(*pair) for pair in told(count, inputs)]
        words = list(dict.fromkeys(label for row in rows for label, _ in row))
        if not words:
            return Condition()
        features = self._heard[0].whole(words)
        places = {label: features[number] for number, label in enumerate(words)}
        width = features.shape[1]
        tokens = torch.cat(
            [
                grounding_tokens(
                    [places[label] for label, _ in row], [box for _, box in row], self.objects, width
                )
                for row in rows
            ]
        ).to(features)
        unsaid = inputs.get("boxes_unsaid")
        denied = any(unsaid) if isinstance(unsaid, list | tuple) else bool(unsaid)
        return Condition(image_tokens=torch.zeros_like(tokens) if denied else tokens)

    def null(self, condition: Condition) -> Condition:
        """No object."""
        tokens = condition.image_tokens
        return Condition() if tokens is None else Condition(image_tokens=torch.zeros_like(tokens))

    def check(self, **inputs: Any) -> None:
        """Refuse boxes that are none, and too many of them, before any work."""
        refuse_unheard(inputs, self.inputs)
        check_layouts(inputs, self._objects)

    def _objects(self, layout: Any, crop: Any) -> list[tuple[str, list[float]]]:
        """Words, and corners (x0, y0, x1, y1) in parts of what the crop shows, of each object shown."""
        objects, (left, top, wide, high) = seen(layout, crop, None)
        if len(objects) > self.objects:
            raise InvalidInput(f"{len(objects)} objects, and there is room for {self.objects}", where="boxes")
        found = []
        for label, (x, y, width, height), _ in objects:
            ends = (
                (x - left) / wide,
                (y - top) / high,
                (x + width - left) / wide,
                (y + height - top) / high,
            )
            found.append((label, [min(max(end, 0.0), 1.0) for end in ends]))
        return found


def grounding_tokens(
    features: Sequence[Tensor], boxes: Sequence[Sequence[float]], objects: int = 30, text: int = 768
) -> Tensor:
    """Image tokens (1, objects, text + 5) of one picture; of no object, zeros, which are the null's too.

    Args:
        features: (text,) each, what the network's own text tower says of the words (its pooled state).
        boxes: (x0, y0, x1, y1) each, from 0 to 1, left and top first.
        objects: room for so many.
        text: width of a feature.

    Raises:
        InvalidInput: too many objects, or boxes that are none.
    """
    if len(features) != len(boxes) or len(boxes) > objects:
        what = f"{len(features)} texts and {len(boxes)} boxes, with room for {objects}"
        raise InvalidInput(what, where="grounding")
    made = torch.zeros(1, objects, text + 5)
    for place, (feature, box) in enumerate(zip(features, boxes, strict=True)):
        corners = [float(each) for each in box]
        if len(corners) != 4 or not (0 <= corners[0] < corners[2] <= 1 and 0 <= corners[1] < corners[3] <= 1):
            raise InvalidInput(f"{corners} is no box (x0, y0, x1, y1) from 0 to 1", where=f"boxes[{place}]")
        made[0, place] = torch.cat((feature.detach().float().cpu(), torch.tensor([*corners, 1.0])))
    return made
