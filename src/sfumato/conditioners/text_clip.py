"""CLIP text: a prompt as the states of one or several CLIP text towers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioners.texts import check_texts, texts
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.encoders.prompt_states import PromptStates, Token

_ROWS = 32
"""Chunks read at once."""


@dataclass(eq=False, repr=False)
class TextCLIP(nn.Module):
    """A prompt in the condition's tokens, as states of CLIP's text towers side by side.

    Stable Diffusion 1 and 2 have one tower; XL has two, whose states of widths 768 and 1280 make tokens of
    2048, and the second's pooled vector in `vector`. A prompt of several chunks has the tokens of one after
    another; shorter prompts of the batch are masked there. A prompt that is not said, and the null, is the
    empty text in as many chunks, or zeros. The empty text, once it is said, is a prompt like any other.

    Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, "SDXL", arXiv:2307.01952, section 2.1.

    Args:
        encoders: the towers, each with its tokenizer, layer and padding.
        pooled: the last tower's pooled vector is told too, in `vector`.
        zeros_for_empty: a prompt that is not said is zeros rather than the states of no words: XL.
        trainable: the towers learn with the network; else they are frozen.

    Raises:
        InvalidInput: no towers, or towers of texts of different lengths.
    """

    encoders: tuple[PromptStates, ...]
    pooled: bool = False
    zeros_for_empty: bool = False
    trainable: bool = False

    inputs = ("prompt", "caption")

    def __post_init__(self) -> None:
        super().__init__()
        if not self.encoders:
            raise InvalidInput("give at least one tower", where="text_clip.encoders")
        if len({encoder.text.length for encoder in self.encoders}) > 1:
            raise InvalidInput("their texts differ in length", where="text_clip.encoders")
        self.towers = nn.ModuleList(self.encoders)
        if not self.trainable:
            self.towers.requires_grad_(False)

    @property
    def tokens(self) -> int:
        """Width of the condition's tokens."""
        return sum(encoder.width for encoder in self.encoders)

    @property
    def vector(self) -> int:
        """Length of the condition's vector; 0 for none."""
        return self.encoders[-1].text.pooled_width if self.pooled else 0

    @property
    def shares(self) -> dict[str, int | None]:
        """What it fills of each slot; of the tokens, all that others leave."""
        return {"tokens": None, **({"vector": self.vector} if self.pooled else {})}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One prompt for all rows, a list with one a row, or None → tokens (count, L, width), and vector.

        `caption`, as data sets call it, is read where no prompt is said.
        """
        rows = texts(count, inputs)
        said = list(dict.fromkeys(row or "" for row in rows))
        states, whole = self.read(said)
        longest = max(len(each) for each in states)
        padded = torch.stack([F.pad(each, (0, 0, 0, longest - len(each))) for each in states])
        lengths = torch.tensor([len(each) for each in states])
        real = torch.arange(longest) < lengths[:, None]
        place = {text: number for number, text in enumerate(said)}
        index = torch.tensor([place[row or ""] for row in rows])
        on = index.to(padded.device)
        tokens, vector = padded[on], None if whole is None else whole[on]
        if self.zeros_for_empty:
            keep = torch.tensor([row is not None for row in rows], device=padded.device)
            tokens = torch.where(keep[:, None, None], tokens, 0)
            vector = None if vector is None else torch.where(keep[:, None], vector, 0)
        mask = None if bool(real.all()) else real[index].to(padded.device)
        return Condition(vector=vector, tokens=tokens, mask=mask)

    def null(self, condition: Condition) -> Condition:
        """The empty prompt in as many chunks, masked alike; or zeros."""
        assert condition.tokens is not None
        tokens = torch.zeros_like(condition.tokens)
        vector = None if condition.vector is None else torch.zeros_like(condition.vector)
        if not self.zeros_for_empty:
            empty = self(1)
            chunks = tokens.shape[1] // self.encoders[0].text.length
            tokens = tokens + empty.tokens.to(tokens).repeat(1, chunks, 1)
            if condition.mask is not None:
                tokens = torch.where(condition.mask[..., None], tokens, 0)
            vector = None if vector is None else vector + empty.vector.to(vector)
        return Condition(vector=vector, tokens=tokens, mask=condition.mask)

    def check(self, **inputs: Any) -> None:
        """Refuse what is no text before any work."""
        check_texts(inputs)

    def whole(self, said: Sequence[str]) -> Tensor:
        """Texts → one vector each (n, width): the first tower's state at the end of the text, unprojected."""
        encoder = self.encoders[0]
        chunks = [encoder.chunks(text)[0] for text in said]
        states, _ = encoder(chunks)
        ends = torch.tensor([len(chunk) + 1 for chunk in chunks], device=states.device)
        return states[torch.arange(len(chunks), device=states.device), ends]

    def report(self, prompt: str) -> list[Token]:
        """Each token of a prompt with its weight and the chunk it falls in, as the first tower reads it."""
        return self.encoders[0].report(prompt)

    def read(self, said: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        """Texts → the states (L, width) of each, chunks one after another, and the pooled vectors.

        Training may keep them, as they are the same at every step where the towers are frozen.
        """
        cut = [[encoder.chunks(text) for encoder in self.encoders] for text in said]
        # Towers may cut one prompt into unlike numbers of chunks: empty ones make up for it.
        counts = [max(len(chunks) for chunks in each) for each in cut]
        made, whole = [], None
        with nullcontext() if self.trainable else torch.no_grad():
            for number, encoder in enumerate(self.encoders):
                rows = [
                    chunk
                    for each, count in zip(cut, counts, strict=True)
                    for chunk in [*each[number], *[[]] * (count - len(each[number]))]
                ]
                pooled = self.pooled and encoder is self.encoders[-1]
                parts = [encoder(rows[i : i + _ROWS], pooled) for i in range(0, len(rows), _ROWS)]
                made.append(torch.cat([states for states, _ in parts]))
                if pooled:
                    firsts = [sum(counts[:i]) for i in range(len(counts))]
                    whole = torch.cat([each for _, each in parts])[firsts]
        states = torch.cat(made, dim=-1)
        return [each.flatten(0, 1) for each in torch.split(states, counts)], whole
