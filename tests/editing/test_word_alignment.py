"""Which token is which word, and which word of another prompt it stands for: by hand and by brute force."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompted_recipes import clip, prompted, small

from sfumato.conditioners.class_token import ClassToken
from sfumato.conditioners.together import Together
from sfumato.core.edit import Scene
from sfumato.core.errors import InvalidInput
from sfumato.editing.word_alignment import Wording, align, refining, replacing, wordings
from sfumato.processes.flow import Flow
from sfumato.times.uniform import Uniform


def scene(conditioner: Any, prompts: list[str]) -> Scene:
    model = prompted()
    model.conditioner = conditioner.eval()
    told = model.conditioner(len(prompts), prompt=prompts)
    path = Flow()
    seeds = [7] * len(prompts)
    return Scene(model, {"prompt": prompts}, told, seeds, (8, 8), (3, 8, 8), path, Uniform()(path, 10))


def said(conditioner: Any, *prompts: str) -> tuple[int, list[Wording]]:
    made = scene(conditioner, list(prompts))
    assert made.condition.tokens is not None
    return made.condition.tokens.shape[1], wordings(made)


# ---- words and their places ----


def test_places_of_word_pieces() -> None:
    columns, (one, other) = said(small(), "a red cat", "a ton cat")
    assert columns == 1 + 5 + 1
    assert [word.places for word in one.words] == [(1,), (2,), (3,)]
    assert [word.places for word in other.words] == [(1,), (2, 3, 4), (5,)]
    assert (one.frames[0].begin, one.frames[0].tail) == (0, (4, 5, 6))
    assert other.find("ton") == [2, 3, 4]
    assert other.find("a TON") == [1, 2, 3, 4]
    assert other.find("red") == other.find("") == []


def test_places_of_clip_tokens_with_weights_chunks_and_breaks() -> None:
    """Chunks of 8: begin, 6 tokens, end."""
    _, (one,) = said(clip(), "a (bc:1.3)d [e]f")
    assert [word.places for word in one.words] == [(1,), (2, 3, 4), (5, 6)]
    _, (plain,) = said(clip(), "a (bc:1.3) [ef]")
    assert [word.places for word in plain.words] == [(1,), (2, 3), (4, 5)]
    assert plain.find("bc") == [2, 3]
    _, (long,) = said(clip(), "ab cd ef gh ab")
    assert [frame.begin for frame in long.frames] == [0, 8]
    assert [frame.tail for frame in long.frames] == [(7,), (13, 14, 15)]
    assert [word.places for word in long.words] == [(1, 2), (3, 4), (5, 6), (9, 10), (11, 12)]
    assert long.find("ab") == [1, 2, 11, 12]
    _, (broken,) = said(clip(), "ab BREAK cd")
    assert [word.places for word in broken.words] == [(1, 2), (9, 10)]
    _, (cut,) = said(clip(), "abcdefgh")
    assert [word.places for word in cut.words] == [(1, 2, 3, 4, 5, 6, 9, 10)]


def test_tokens_of_others_stand_beside() -> None:
    labels = ClassToken({"label": ["x", "y"]}, width=16)
    for parts, first in (((labels, small()), 2), ((small(), labels), 1)):
        columns, (one,) = said(Together(parts), "a cat")
        assert columns == 5
        assert [word.places for word in one.words] == [(first,), (first + 1,)]
        assert one.rest == ((0,) if first == 2 else (4,))
        assert torch.equal(replacing(one, one, columns), torch.eye(columns))


def test_models_that_know_no_words() -> None:
    with pytest.raises(InvalidInput, match="attends to no prompt"):
        wordings(scene(ClassToken({"prompt": ["a"]}, width=16), ["a"]))


# ---- replace ----


def test_a_word_for_a_word_of_one_token_is_the_identity() -> None:
    for conditioner, prompts in ((small(), ("a cat on", "a dog on")), (clip(), ("a c e", "a d e"))):
        columns, (one, other) = said(conditioner, *prompts)
        assert torch.equal(replacing(one, other, columns), torch.eye(columns))


def test_a_longer_word_by_hand() -> None:
    """x → bcd, in 8 columns: begin, a, x, e, end and padding; begin, a, b, c, d, e, end, padding."""
    columns, (one, other) = said(clip(), "a x e", "a bcd e")
    wanted = torch.zeros(8, 8)
    for s, t in ((0, 0), (1, 1), (3, 5), (4, 6), (5, 7), (6, 7), (7, 7)):
        wanted[s, t] = 1
    wanted[2, 2:5] = 1 / 3
    assert torch.equal(replacing(one, other, columns), wanted)
    # And back: each gives all it has to the one there is; the last of the padding gets nothing.
    back = torch.zeros(8, 8)
    for s, t in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4), (7, 5)):
        back[s, t] = 1
    assert torch.equal(replacing(other, one, columns), back)


@pytest.mark.parametrize(
    "pair", [("a x e", "a bcd e"), ("abc d", "xy zv"), ("ab (cd:1.4) e f", "ab c (e:.5) fg")]
)
def test_no_attention_is_lost(pair: tuple[str, str]) -> None:
    """Σ_t M[s, t] = 1, and of a word to another Σ_s M[s, t] = len(s) / len(t)."""
    columns, (one, other) = said(clip(), *pair)
    moves = replacing(one, other, columns)
    torch.testing.assert_close(moves.sum(1), torch.ones(columns))
    for before, after in zip(one.words, other.words, strict=True):
        each = moves[list(before.places)][:, list(after.places)].sum(0)
        torch.testing.assert_close(each, torch.full_like(each, len(before.ids) / len(after.ids)))


def test_words_across_chunks_are_replaced() -> None:
    columns, (one, other) = said(clip(), "ab cd ef gh", "ab cdk ef gh")
    moves = replacing(one, other, columns)
    # gh stood in the second chunk, ef now straddles it: the place it stands in is another, its word is not.
    assert [word.places for word in other.words] == [(1, 2), (3, 4, 5), (6, 9), (10, 11)]
    assert moves[5, 6] == moves[6, 9] == moves[9, 10] == moves[10, 11] == 1
    assert moves[7, 7] == moves[11, 12] == moves[8, 8] == 1


def test_what_cannot_be_replaced() -> None:
    columns, (one, other, long) = said(clip(), "a c", "a c e", "abcd efgh")
    with pytest.raises(InvalidInput, match="2 words are not replaced by 3"):
        replacing(one, other, columns)
    with pytest.raises(InvalidInput, match="1 and 2 chunks"):
        replacing(one, long, columns)
    with pytest.raises(InvalidInput, match="1 and 2 chunks"):
        refining(one, long, columns)


# ---- refine ----


def test_words_added_and_left_out_by_hand() -> None:
    """a c e → a b c: begin, a and c are known, and the end and the padding; b is new, e is gone."""
    columns, (one, other) = said(clip(), "a c e", "a b c")
    moves, known = refining(one, other, columns)
    wanted = torch.zeros(8, 8)
    for s, t in ((0, 0), (1, 1), (2, 3), (4, 4), (5, 5), (6, 6), (7, 7)):
        wanted[s, t] = 1
    assert torch.equal(moves, wanted)
    assert known.tolist() == [True, True, False, True, True, True, True, True]
    # The end is aligned with the end where the prompt grows, and what padding is new is its own.
    columns, (one, other) = said(clip(), "ab", "a")
    moves, known = refining(one, other, columns)
    assert moves[3, 2] == moves[7, 6] == 1
    assert not known[7]


CASES: list[tuple[str, str, list[int | None]]] = [
    ("abc", "abc", [0, 1, 2]),
    ("abc", "axbc", [0, None, 1, 2]),
    ("abc", "ac", [0, 2]),
    ("a", "aa", [0, None]),
    ("aa", "a", [0]),
    ("ab", "ba", [1, None]),
    ("abcd", "acbd", [0, 2, None, 3]),
    ("", "ab", [None, None]),
    ("ab", "", []),
]


@pytest.mark.parametrize("source, target, wanted", CASES)
def test_alignments_by_hand(source: str, target: str, wanted: list[int | None]) -> None:
    assert align([*source.encode()], [*target.encode()]) == wanted


def published(x: list[int], y: list[int]) -> list[int | None]:
    """The same again, recursively: scores of prefixes, then from the end left, up, diagonal."""

    def score(i: int, j: int) -> int:
        if not i or not j:
            return 0
        return max(
            score(i, j - 1), score(i - 1, j), score(i - 1, j - 1) + (1 if x[i - 1] == y[j - 1] else -1)
        )

    def back(i: int, j: int) -> list[int | None]:
        if not i or not j:
            return [None] * j
        if score(i, j) == score(i, j - 1):
            return [*back(i, j - 1), None]
        if score(i, j) == score(i - 1, j):
            return back(i - 1, j)
        return [*back(i - 1, j - 1), i - 1]

    return back(len(x), len(y))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_alignments_of_all_kinds(x: list[int], y: list[int]) -> None:
    found = align(x, y)
    assert found == published(x, y)
    # As many are aligned as the longest common subsequence has, counted by trying all.
    common = max(
        n
        for n in range(min(len(x), len(y)) + 1)
        if {tuple(x[i] for i in c) for c in combinations(range(len(x)), n)}
        & {tuple(y[i] for i in c) for c in combinations(range(len(y)), n)}
    )
    assert sum(each is not None for each in found) == common
