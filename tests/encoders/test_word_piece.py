"""WordPiece: BERT's pieces, and vocabularies that captions make."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.encoders.word_piece import SPECIAL, WordPiece, words
from sfumato.registry import build, describe

CAPTIONS = [
    "a red apple left of a cat",
    "a cat and a kite above the cat",
    "the kite, unlike a cat's!",
    "el niño",
]
PIECES = WordPiece(
    (*SPECIAL, *"abcdefgxyz!,'.", *("##" + c for c in "abcdefgxy"), "cab", "##bag", "ab", "日")
)


@pytest.fixture(scope="module")
def reference() -> object:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=dict(PIECES.table))


@pytest.mark.parametrize(
    "text",
    [
        "cabbage",
        "CAB, bag! a.b",
        "áb ÇAB",
        "xyz zx",
        "a日b",
        "ab\u00a0ab\tab\n",
        "a\u200bb a\x00b",
        "q" * 200,
        "",
    ],
)
def test_pieces_are_those_of_bert(reference: object, text: str) -> None:
    assert PIECES.ids(text) == reference(text, add_special_tokens=False).input_ids  # type: ignore[operator]


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="abcdefgxyz!,'. ÁçB日\t-_~$🙂", max_size=30))
def test_any_text_has_the_pieces_of_bert(reference: object, text: str) -> None:
    assert PIECES.ids(text) == reference(text, add_special_tokens=False).input_ids  # type: ignore[operator]


def test_a_vocabulary_of_captions_says_them_and_spells_the_rest() -> None:
    made = WordPiece.of(CAPTIONS)
    for caption in CAPTIONS:
        assert made.pieces(caption) == words(caption)
    assert made.pieces("tail") == ["t", "##a", "##i", "##l"]
    assert made.pieces("quiz") == ["[UNK]"]
    assert made.vocabulary[:4] == SPECIAL
    assert made.vocabulary.index("cat") < made.vocabulary.index("kite") < made.vocabulary.index("apple")


def test_the_order_of_captions_does_not_matter_and_the_most_frequent_stay() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(1).shuffle(shuffled)
    assert WordPiece.of(shuffled) == WordPiece.of(CAPTIONS)
    letters = len(WordPiece.of(CAPTIONS).vocabulary) - len(
        {w for c in CAPTIONS for w in words(c) if len(w) > 1}
    )
    assert WordPiece.of(CAPTIONS, letters + 1).vocabulary[-1] == "cat"


def test_it_comes_back_and_is_read_from_a_folder(tmp_path: Path) -> None:
    made = WordPiece.of(CAPTIONS)
    assert build("encoder", describe(made)) == made
    (tmp_path / "vocab.txt").write_text("\n".join(made.vocabulary) + "\n", encoding="utf-8")
    assert WordPiece.read(tmp_path) == made
    (tmp_path / "vocab.txt").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="UTF-8"):
        WordPiece.read(tmp_path)
    with pytest.raises(NotFound, match=r"no vocab\.txt"):
        WordPiece.read(tmp_path / "no")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lacks"):
        WordPiece(("a",))
    with pytest.raises(InvalidInput, match="twice"):
        WordPiece((*SPECIAL, "a", "a"))
