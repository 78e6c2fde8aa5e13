"""Image prompt: a picture as CLIP sees it, attended to beside the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.beside import refuse_unheard, rows_of, values_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import picture_of
from sfumato.encoders.clip_image import ClipImage

_TOGETHER = 8
"""Pictures seen at once."""


@dataclass(eq=False, repr=False)
class ImageCLIP(nn.Module):
    """What CLIP sees in a picture, in the condition's image tokens, each with its strength as last number.

    A row that is told no picture has one of zeros with a strength of 0, and where no row is told any nothing
    is said. The null, and a negative prompt, is no picture as published adapters know it, with the same
    strength: a vector of zeros, or the states of a picture of the mean colour. A negative picture is said
    with image_unsaid=False beside it.

    Ye et al. 2023, "IP-Adapter", arXiv:2308.06721, sections 3.2.1 and 4.1.2.

    Args:
        encoder: the image tower, which does not learn.
        states: those of its last layer but one are told rather than the pooled vector ("plus").
        strength: where nobody says another.

    Raises:
        InvalidInput: when told, what is no picture, or a strength that is no number.
    """

    encoder: ClipImage
    states: bool = False
    strength: float = 1.0

    inputs = ("image_prompt", "image_strength", "image_unsaid")
    kept = ("image_prompt", "image_strength")
    pictures = ("image_prompt",)

    def __new__(cls, *args: Any, **kwargs: Any) -> ImageCLIP:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        self.encoder.requires_grad_(False)

    @property
    def denied(self) -> dict[str, Any]:
        """A negative prompt says that what is kept is not said."""
        return {"image_unsaid": True}

    @property
    def shares(self) -> dict[str, int | None]:
        """None: the slot is its alone."""
        return {}

    @property
    def width(self) -> int:
        """Of what is told, the strength not counted."""
        return self.encoder.width if self.states else self.encoder.projection or self.encoder.width

    @torch.no_grad()
    def forward(self, count: int, **inputs: Any) -> Condition:
        """One picture for all rows, a list with one a row, or None → image tokens (count, M, width + 1).

        A picture is a path, a PIL image, or a tensor (3, H, W) in [-1, 1]; of the longer side the middle is
        seen. Strengths are one number for all rows or a list.
        """
        rows = rows_of(count, inputs.get("image_prompt"), "image_prompt")
        if all(row is None for row in rows):
            return Condition()
        strengths = rows_of(count, inputs.get("image_strength"), "image_strength")
        told = [self.strength if each is None else float(each) for each in strengths]
        # What is said of several rows is one object: it is seen once.
        places = {id(row): row for row in rows if row is not None}
        seen = self.read([picture_of(row, 3, "image_prompt") for row in places.values()])
        index = torch.tensor([list(places).index(id(row)) if row is not None else 0 for row in rows])
        there = torch.tensor([row is not None for row in rows], device=seen.device)[:, None, None]
        tokens = torch.where(there, seen[index.to(seen.device)], 0)
        column = torch.where(there, torch.tensor(told).to(tokens)[:, None, None], 0)
        whole = Condition(image_tokens=torch.cat((tokens, column.expand(-1, tokens.shape[1], 1)), dim=2))
        unsaid = inputs.get("image_unsaid")
        denied = any(unsaid) if isinstance(unsaid, list | tuple) else bool(unsaid)
        return self.null(whole) if denied else whole

    def null(self, condition: Condition) -> Condition:
        """No picture, as strong as the picture was."""
        tokens = condition.image_tokens
        if tokens is None:
            return Condition()
        blank = torch.zeros_like(tokens[..., :-1])
        if self.states:
            size, like = self.encoder.size, next(self.encoder.parameters())
            with torch.no_grad():
                blank = blank + self._seen(like.new_zeros(1, 3, size, size)).to(tokens)
        return Condition(image_tokens=torch.cat((blank, tokens[..., -1:]), dim=2))

    def check(self, **inputs: Any) -> None:
        """Refuse what cannot be read before any work."""
        refuse_unheard(inputs, self.inputs)
        for row in values_of(inputs.get("image_prompt")):
            picture_of(row, 3, "image_prompt")
        for row in values_of(inputs.get("image_strength")):
            if isinstance(row, bool) or not isinstance(row, int | float) or not abs(row) < 1e4:
                raise InvalidInput(
                    f"{str(row)[:40]!r} is no strength", where="image_strength", do="say 0 to 1"
                )

    def read(self, pictures: list[Tensor]) -> Tensor:
        """Pictures (3, H, W) in [-1, 1] → what is told of each, (n, M, width)."""
        like = next(self.encoder.parameters())
        ready = [self.encoder.prepare(each[None].to(like.device)).to(like.dtype) for each in pictures]
        starts = range(0, len(ready), _TOGETHER)
        return torch.cat([self._seen(torch.cat(ready[i : i + _TOGETHER])) for i in starts])

    def _seen(self, prepared: Tensor) -> Tensor:
        if self.states:
            return self.encoder.hidden_states(prepared)[-2]
        pooled = self.encoder(prepared).pooled
        assert pooled is not None
        return pooled[:, None]
