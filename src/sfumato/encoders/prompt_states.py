"""Prompt states: what a CLIP text tower makes of prompts of any length, words weighted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput
from sfumato.core.prompt import parse, plain
from sfumato.encoders.bpe import BPE
from sfumato.encoders.clip_text import ClipText


class Token(NamedTuple):
    """One token of a prompt, as a report shows it.

    Args:
        text: the characters it stands for.
        weight: how much it is heeded; 1 is plain.
        chunk: which chunk of the prompt it falls in, from 0.
        id: its number in the vocabulary.
    """

    text: str
    weight: float
    chunk: int
    id: int


@dataclass(eq=False, repr=False)
class PromptStates(nn.Module):
    """A text tower with its tokenizer, and which of its states are read.

    A prompt longer than the tower's texts (75 tokens, beside begin and end) is read in chunks, each a text of
    its own, whose states stand one after another; nothing is cut. BREAK ends a chunk. Weights multiply the
    states of their tokens, and then the states of the chunk are scaled back to their former mean, as the
    A1111 web interface does it; pooled is that of the first chunk, and heeds no weights.

    Args:
        text: the tower.
        tokenizer: texts to ids.
        layer: whose states are read: -1 the last, -2 the one before it.
        norm: the tower's final norm stands after them: in Stable Diffusion 1 and 2, not in XL.
        pad: id that fills up a chunk; the end of text if not said. 0 in OpenCLIP's.
        weighting: the grammar of core/prompt.py is heeded; else brackets are text like any other.

    Raises:
        InvalidInput: ids that the tower has no embeddings for, or a layer it does not have.
    """

    text: ClipText
    tokenizer: BPE = field(default_factory=BPE)
    layer: int = -1
    norm: bool = True
    pad: int | None = None
    weighting: bool = True

    def __new__(cls, *args: Any, **kwargs: Any) -> PromptStates:
        # A module must be set up before it is given another, which the dataclass does first of all.
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __post_init__(self) -> None:
        self.text.place(self.layer)
        most = max(self.tokenizer.table.values())
        if most >= self.text.vocabulary:
            raise InvalidInput(
                f"ids go to {most}, embeddings to {self.text.vocabulary - 1}", where="prompt_states.tokenizer"
            )
        if self.pad is not None and not 0 <= self.pad < self.text.vocabulary:
            raise InvalidInput(f"there is no token {self.pad}", where="prompt_states.pad")
        if self.text.length < 3:
            raise InvalidInput("its texts have no room for a token", where="prompt_states.text.length")

    @property
    def width(self) -> int:
        """Of the states."""
        return self.text.width

    @property
    def room(self) -> int:
        """Tokens of a prompt in a chunk: 75 in published towers."""
        return self.text.length - 2

    def report(self, prompt: str) -> list[Token]:
        """Each token of a prompt with its weight and the chunk it falls in."""
        return [token for chunk in self.chunks(prompt) for token in chunk]

    def chunks(self, prompt: str) -> list[list[Token]]:
        """The tokens of each chunk of a prompt; of one that says nothing, an empty chunk."""
        chunks: list[list[Token]] = []
        sections = parse(prompt) if self.weighting else plain(prompt)
        for section in sections if sections[-1] or len(sections) == 1 else sections[:-1]:
            chunks.append([])
            for piece in section:
                for unit in self.tokenizer.units(piece.text):
                    if len(chunks[-1]) == self.room:
                        chunks.append([])
                    chunks[-1].append(Token(unit.text, piece.weight, len(chunks) - 1, unit.id))
        return chunks

    def forward(
        self, chunks: Sequence[Sequence[Token]], pooled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Chunks → states (chunks, length, width), weighted, and pooled (chunks, ·) if asked for."""
        ids, weights = self._laid(chunks)
        states, whole = self.text(ids, self.layer, self.norm, pooled)
        return weighted(states, weights), whole

    def _laid(self, chunks: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
        """Ids (chunks, length) with begin, end and padding; and the weight of each, 1 for these."""
        start, end = self.tokenizer.start, self.tokenizer.end
        pad = end if self.pad is None else self.pad
        ids, weights = [], []
        for chunk in chunks:
            rest = self.room - len(chunk)
            ids.append([start, *(token.id for token in chunk), end, *[pad] * rest])
            weights.append([1.0, *(token.weight for token in chunk), 1.0, *[1.0] * rest])
        device = self.text.text_model["final_layer_norm"].weight.device
        return torch.tensor(ids, device=device), torch.tensor(weights)  # type: ignore[arg-type]


def weighted(states: Tensor, weights: Tensor) -> Tensor:
    """States (B, N, width) times weights (B, N), each row scaled back to the mean it had.

    Rows whose weights are all 1 stay as they are, to the bit; so does the scale of one without a mean.
    """
    changed = (weights != 1).any(dim=1)
    if not bool(changed.any()):
        return states
    changed = changed.to(states.device)
    times = states * weights.to(states)[..., None]
    before, after = (each.float().mean(dim=(1, 2), keepdim=True) for each in (states, times))
    scale = torch.where(after == 0, torch.ones_like(after), before / after)
    return torch.where(changed[:, None, None], times * scale.to(times), states)
