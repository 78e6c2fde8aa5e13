"""Small text: a caption as the states of a transformer that is trained with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.conditioners.texts import check_texts, texts
from sfumato.core.condition import Condition
from sfumato.encoders import text_small


@dataclass(eq=False, repr=False)
class TextSmall(nn.Module):
    """A caption in the condition's tokens, by a text transformer of one's own that learns with the network.

    With `pooled` the mean of the tokens is told in the vector too, as GLIDE tells its last: every block of
    the network hears it from the first step, long before attention has learnt where to look. The null is the
    empty caption.

    Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1; pooled as in Nichol et al. 2021, arXiv:2112.10741,
    section 2.1.

    Args:
        encoder: the transformer with its vocabulary.
        pooled: the mean of a caption's tokens is told in `vector`.
        frozen: the transformer is one that was trained before, and does not learn with the network.
    """

    encoder: text_small.TextSmall
    pooled: bool = False
    frozen: bool = False

    inputs: ClassVar[tuple[str, ...]] = ("prompt", "caption")

    def __new__(cls, *args: Any, **kwargs: Any) -> TextSmall:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        if self.frozen:
            self.encoder.requires_grad_(False)

    @property
    def tokens(self) -> int:
        """Width of the condition's tokens."""
        return self.encoder.width

    @property
    def shares(self) -> dict[str, int | None]:
        """All tokens that others leave, and as much of the vector as a token is wide."""
        return {"tokens": None, **({"vector": self.encoder.width} if self.pooled else {})}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One caption for all rows, a list with one a row, or None → tokens (count, L, width), mask, vector.

        `prompt` and `caption` are the same; where both are said, the prompt is read. Texts that are said
        several times are encoded once.
        """
        rows = [row or "" for row in texts(count, inputs)]
        said = list(dict.fromkeys(rows))
        ids, real = self.encoder.lay(said)
        states = self.encoder(ids, real)
        index = torch.tensor([said.index(row) for row in rows], device=states.device)
        mask = None if real is None else real[index]
        vector = self.encoder.pool(states, real)[index] if self.pooled else None
        return Condition(vector=vector, tokens=states[index], mask=mask)

    def null(self, condition: Condition) -> Condition:
        """The empty caption, row for row."""
        return self(len(condition))

    def whole(self, said: list[str]) -> Tensor:
        """Texts → one vector each (n, width), the mean of its tokens."""
        ids, real = self.encoder.lay(said)
        made: Tensor = self.encoder.pool(self.encoder(ids, real), real)
        return made

    def check(self, **inputs: Any) -> None:
        """Refuse what is no text, and what is too long, before any work."""
        check_texts(inputs)
        for value in inputs.values():
            said = [value] if isinstance(value, str) else value or ()
            if said := [text for text in said if text is not None]:
                self.encoder.lay(said)
