"""Small text: a caption as the states of a transformer that is trained with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sfumato.conditioners.texts import check_texts, texts
from sfumato.core.condition import Condition
from sfumato.encoders import text_small


@dataclass(eq=False, repr=False)
class TextSmall(nn.Module):
    """A caption in the condition's tokens, by a text transformer of one's own that learns with the network.

    The null is the empty caption.

    Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1.

    Args:
        encoder: the transformer with its vocabulary.
    """

    encoder: text_small.TextSmall

    inputs = ("prompt", "caption")

    def __new__(cls, *args: Any, **kwargs: Any) -> TextSmall:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    @property
    def tokens(self) -> int:
        """Width of the condition's tokens."""
        return self.encoder.width

    @property
    def shares(self) -> dict[str, int | None]:
        """All tokens that others leave."""
        return {"tokens": None}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One caption for all rows, a list with one a row, or None → tokens (count, L, width) and mask.

        `prompt` and `caption` are the same; where both are said, the prompt is read. Texts that are said
        several times are encoded once.
        """
        rows = [row or "" for row in texts(count, inputs)]
        said = list(dict.fromkeys(rows))
        ids, real = self.encoder.lay(said)
        states = self.encoder(ids, real)
        index = torch.tensor([said.index(row) for row in rows], device=states.device)
        return Condition(tokens=states[index], mask=None if real is None else real[index])

    def null(self, condition: Condition) -> Condition:
        """The empty caption, row for row."""
        return self(len(condition))

    def check(self, **inputs: Any) -> None:
        """Refuse what is no text, and what is too long, before any work."""
        check_texts(inputs)
        for value in inputs.values():
            said = [value] if isinstance(value, str) else value or ()
            if said := [text for text in said if text is not None]:
                self.encoder.lay(said)
