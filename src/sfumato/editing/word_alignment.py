"""Which tokens of the condition are which word of a prompt, and which word of another they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.conditioners.text_clip import TextCLIP
from sfumato.conditioners.text_small import TextSmall
from sfumato.conditioners.texts import NAMES, texts
from sfumato.conditioners.together import Together
from sfumato.core.edit import Scene
from sfumato.core.errors import InvalidInput
from sfumato.core.prompt import parse, plain
from sfumato.encoders.prompt_states import PromptStates


class Word(NamedTuple):
    """A stretch of a prompt between spaces: the ids of its tokens, and their places in the condition."""

    ids: tuple[int, ...]
    places: tuple[int, ...]


class Frame(NamedTuple):
    """What stands around the words of a chunk of 77 tokens, or of a whole caption: the place of the begin,
    and those of the end and the padding after it.
    """

    begin: int
    tail: tuple[int, ...]


@dataclass(frozen=True)
class Wording:
    """A prompt as the condition's tokens tell it.

    Args:
        prompt: as it was said.
        words: in order; their brackets and weights, which change how much a token is heeded and not which it
            is, left out.
        frames: one a chunk.
        rest: places that tell something else than text.
        ids_of: the ids of any text, without begin and end.
    """

    prompt: str
    words: tuple[Word, ...]
    frames: tuple[Frame, ...]
    rest: tuple[int, ...]
    ids_of: Callable[[str], Sequence[int]]

    @property
    def ids(self) -> list[int]:
        """Of all words."""
        return list(chain.from_iterable(word.ids for word in self.words))

    @property
    def places(self) -> list[int]:
        """Of all words' tokens."""
        return list(chain.from_iterable(word.places for word in self.words))

    def find(self, phrase: str) -> list[int]:
        """The places of a word, or of several in a row, wherever it stands; none where it does not."""
        sought, ids, places = list(self.ids_of(phrase)), self.ids, self.places
        starts = [i for i in range(len(ids)) if sought and ids[i : i + len(sought)] == sought]
        return sorted({place for i in starts for place in places[i : i + len(sought)]})


def wordings(scene: Scene) -> list[Wording]:
    """The prompt of each picture.

    Prompts are those of the conditioners `text_small` and `text_clip`, alone or together with others: of any
    length, weighted or not, with BREAK.

    Raises:
        InvalidInput: the model attends to no text, or to text of another kind.
    """
    part, before, after = _told_by(scene.model.conditioner)
    if scene.condition.tokens is None or part is None:
        raise InvalidInput(
            "this model attends to no prompt of text_small or text_clip, whose words are known", where="edit"
        )
    columns = scene.condition.tokens.shape[1]
    rows = texts(len(scene), {name: scene.said[name] for name in NAMES if name in scene.said})
    return [_wording(part, row or "", before, columns - after, columns) for row in rows]


def found(said: Sequence[Wording], phrase: str, where: str) -> list[list[int]]:
    """The places of a word in each of several prompts; InvalidInput where it stands in none."""
    places = [each.find(phrase) for each in said]
    if not any(places):
        prompts = " or ".join(repr(prompt[:60]) for prompt in dict.fromkeys(each.prompt for each in said))
        raise InvalidInput(f"{phrase!r} does not stand in {prompts}", where=where)
    return places


def replacing(source: Wording, target: Wording, columns: int) -> Tensor:
    """Where the attention to each source token goes: M (columns, columns), rows the source's, columns the
    target's.

    Word by word. Of one that stays, or of as many tokens, to each token its own; else each of a word's
    target tokens gets an equal part of all that its source tokens had, Σ_s M[s, t] = len(s) / len(t).

    Raises:
        InvalidInput: prompts of another number of words, or of chunks.
    """
    if len(source.words) != len(target.words):
        raise InvalidInput(
            f"{len(source.words)} words are not replaced by {len(target.words)}: {target.prompt[:60]!r}",
            where="prompt_to_prompt.method",
            do="refine adds and leaves out words",
        )
    moves = _around(source, target, columns)
    for before, after in zip(source.words, target.words, strict=True):
        if len(before.ids) == len(after.ids):
            moves[list(before.places), list(after.places)] = 1
        else:
            for place in before.places:
                moves[place, list(after.places)] = 1 / len(after.places)
    for mine, other in zip(source.frames, target.frames, strict=True):
        # The published code goes on with the target's own place on both sides, so that after a word of
        # another length the end is taken for padding. Here the end is the end, and what padding there is
        # too much of goes to the last, so that no attention is lost.
        for number, place in enumerate(mine.tail):
            moves[place, other.tail[min(number, len(other.tail) - 1)]] = 1
    return moves


def refining(source: Wording, target: Wording, columns: int) -> tuple[Tensor, Tensor]:
    """Which source token each target token is, M (columns, columns), and whether it is one, (columns,) bool.

    Tokens of the words are aligned; those around them are what they are.

    Raises:
        InvalidInput: prompts of another number of chunks.
    """
    moves = _around(source, target, columns)
    sources = source.places
    for place, other in zip(target.places, align(source.ids, target.ids), strict=True):
        if other is not None:
            moves[sources[other], place] = 1
    for mine, other_frame in zip(source.frames, target.frames, strict=True):
        for place, other_place in zip(mine.tail, other_frame.tail, strict=False):
            moves[place, other_place] = 1
    return moves, moves.any(dim=0)


def align(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """For each of the target's numbers the place of the source's it is aligned to, or None.

    Global alignment with 1 for a match, -1 for a mismatch and 0 for a gap. Of equally good alignments the
    one is taken that, read from the end, inserts before it leaves out before it matches, as the published
    code does.

    Needleman & Wunsch 1970, "A general method applicable to the search for similarities in the amino acid
    sequence of two proteins".
    """
    best = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, mine in enumerate(source, 1):
        for j, other in enumerate(target, 1):
            match = best[i - 1][j - 1] + (1 if mine == other else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], match)
    i, j = len(source), len(target)
    aligned: list[int | None] = [None] * j
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            aligned[j] = i
    return aligned


def _around(source: Wording, target: Wording, columns: int) -> Tensor:
    """The moves of begins, and of what is no text."""
    if len(source.frames) != len(target.frames):
        raise InvalidInput(
            f"prompts of {len(source.frames)} and {len(target.frames)} chunks of tokens cannot be aligned",
            where="prompt",
            do="make them of about the same length",
        )
    moves = torch.zeros(columns, columns)
    for place in source.rest:
        moves[place, place] = 1
    for mine, other in zip(source.frames, target.frames, strict=True):
        moves[mine.begin, other.begin] = 1
    return moves


def _told_by(conditioner: Any) -> tuple[TextSmall | TextCLIP | None, int, int]:
    """What tells the prompt, and how many tokens others tell before and after it."""
    parts: tuple[Any, ...] = conditioner.parts if isinstance(conditioner, Together) else (conditioner,)
    place = next((i for i, each in enumerate(parts) if isinstance(each, TextSmall | TextCLIP)), None)
    if place is None:
        return None, 0, 0
    shares = [getattr(each, "shares", {}).get("tokens", 0) or 0 for each in parts]
    return parts[place], sum(shares[:place]), sum(shares[place + 1 :])


def _wording(part: TextSmall | TextCLIP, prompt: str, first: int, last: int, columns: int) -> Wording:
    """The prompt whose tokens stand from `first` up to `last` of so many columns."""
    rest = (*range(first), *range(last, columns))
    if isinstance(part, TextSmall):
        pieces = part.encoder.tokenizer
        words, place = [], first + 1
        for ids in filter(None, (pieces.ids(word) for word in prompt.split())):
            words.append(Word(tuple(ids), tuple(range(place, place + len(ids)))))
            place += len(ids)
        return Wording(prompt, tuple(words), (Frame(first, tuple(range(place, last))),), rest, pieces.ids)
    states = part.encoders[0]
    words, frames = [], []
    for chunk, tokens in enumerate(states.chunks(prompt)):
        begin = first + chunk * states.text.length
        frames.append(Frame(begin, tuple(range(begin + 1 + len(tokens), begin + states.text.length))))
    for group in _spaced(states, prompt):
        places = tuple(first + chunk * states.text.length + 1 + number for chunk, number, _ in group)
        words.append(Word(tuple(number for _, _, number in group), places))
    return Wording(prompt, tuple(words), tuple(frames), rest, states.tokenizer.ids)


def _spaced(states: PromptStates, prompt: str) -> list[list[tuple[int, int, int]]]:
    """The tokens of each word between spaces: chunk, number in it, id."""
    sections = parse(prompt) if states.weighting else plain(prompt)
    text = "\n".join("".join(piece.text for piece in section) for section in sections)
    groups: list[list[tuple[int, int, int]]] = []
    reached, spaced = 0, True
    for chunk in states.chunks(prompt):
        for number, token in enumerate(chunk):
            while reached < len(text) and text[reached].isspace():
                reached, spaced = reached + 1, True
            if spaced:
                groups.append([])
            groups[-1].append((token.chunk, number, token.id))
            reached, spaced = reached + len(token.text), False
    return groups
