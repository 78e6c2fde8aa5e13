"""Word pieces: the tokenizer of BERT, and small vocabularies of one's own for captions."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sfumato.core.errors import InvalidInput, NotFound

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, START, END)
INSIDE = "##"
_LONGEST = 100
_MOST_BYTES = 16 * 2**20
# Ideographs stand alone, each a word; these are the blocks BERT knew.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


@dataclass(frozen=True)
class WordPiece:
    """Words of a vocabulary, and others as the longest pieces of it that make them up, in lower case.

    Accents are left out. A piece inside a word begins with ##. A word that no pieces make up is [UNK].

    Schuster & Nakajima 2012, "Japanese and Korean Voice Search"; Devlin et al. 2019, "BERT",
    arXiv:1810.04805.

    Args:
        vocabulary: the pieces, whose place is their id; [PAD], [UNK], [CLS] (begin) and [SEP] (end) among
            them. These alone if empty.

    Raises:
        InvalidInput: a piece twice, or one of the four missing.
    """

    vocabulary: tuple[str, ...] = field(default_factory=lambda: SPECIAL)

    def __post_init__(self) -> None:
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise InvalidInput("a piece stands twice", where="word_piece.vocabulary")
        if missing := [name for name in SPECIAL if name not in self.vocabulary]:
            raise InvalidInput(f"it lacks {', '.join(missing)}", where="word_piece.vocabulary")

    @staticmethod
    def of(captions: Iterable[str], most: int = 8192) -> WordPiece:
        """A vocabulary of the words of captions, and of their letters, that spell all other words.

        The same captions, in any order, give the same: letters come first, then words, the most frequent
        first and of equally frequent ones by letter.

        Args:
            captions: all texts.
            most: pieces.
        """
        counts = Counter(word for caption in captions for word in words(caption))
        letters = sorted({letter for word in counts for letter in word})
        pieces = [*SPECIAL, *letters, *(INSIDE + letter for letter in letters)]
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        pieces += [word for word in frequent if len(word) > 1]
        return WordPiece(tuple(pieces[: max(most, len(SPECIAL))]))

    @staticmethod
    def read(folder: str | Path) -> WordPiece:
        """The tokenizer of a checkpoint's folder, its vocab.txt of one piece a line.

        Raises:
            NotFound: there is none.
            InvalidInput: it is not what it is called.
        """
        path = Path(folder) / "vocab.txt"
        if not path.is_file():
            raise NotFound("there is no vocab.txt", where=str(folder))
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput("it is too large to be a vocabulary", where=str(path))
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"it cannot be read as UTF-8 text: {error}", where=str(path)) from error
        return WordPiece(tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")))

    @cached_property
    def table(self) -> dict[str, int]:
        """Id by piece."""
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    def pieces(self, text: str) -> list[str]:
        """A text as pieces of the vocabulary, without begin and end."""
        return [piece for word in words(text) for piece in self._spelled(word)]

    def ids(self, text: str) -> list[int]:
        """A text as ids, without begin and end."""
        return [self.table[piece] for piece in self.pieces(text)]

    def _spelled(self, word: str) -> list[str]:
        if len(word) > _LONGEST:
            return [UNKNOWN]
        pieces, start = [], 0
        while start < len(word):
            prefix = INSIDE if start else ""
            stop = next(
                (end for end in range(len(word), start, -1) if prefix + word[start:end] in self.table), None
            )
            if stop is None:
                return [UNKNOWN]
            pieces.append(prefix + word[start:stop])
            start = stop
        return pieces


def words(text: str) -> list[str]:
    """A text in lower case without accents or control characters, cut at spaces and around punctuation."""
    found: list[str] = []
    joined = False
    for letter in _clean(text):
        if letter.isspace():
            joined = False
        elif _stands_alone(letter):
            found.append(letter)
            joined = False
        elif joined:
            found[-1] += letter
        else:
            found.append(letter)
            joined = True
    return found


def _clean(text: str) -> str:
    kept = []
    for letter in text:
        if letter in "\t\n\r":
            kept.append(" ")
        elif letter != "\ufffd" and unicodedata.category(letter) not in ("Cc", "Cf", "Cn", "Co", "Cs"):
            kept.append(letter)
    # Accents are letters of their own in the decomposed form.
    apart = unicodedata.normalize("NFD", "".join(kept))
    return "".join(letter for letter in apart if unicodedata.category(letter) != "Mn").lower()


def _stands_alone(letter: str) -> bool:
    number = ord(letter)
    if number < 128:
        return not letter.isalnum()
    if unicodedata.category(letter)[0] == "P":
        return True
    return any(first <= number <= last for first, last in _IDEOGRAPHS)
