"""CLIP's tokenizer: texts to the ids of byte pairs, and back."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfumato.core.errors import InvalidInput, MissingExtra, NotFound

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# Contractions, runs of letters, single numerals, runs of anything else that is no space.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MOST_BYTES = 64 * 2**20
_MOST_TOKENS = 2**31


class Unit(NamedTuple):
    """One token of a text: its id, and the characters of the text it stands for."""

    id: int
    text: str


@dataclass(frozen=True)
class BPE:
    """Byte-pair encoding as CLIP has it: lower case, words end in </w>, 49,408 tokens.

    Text is composed (NFC), runs of white space become one space, and letters lower case; HTML entities stay
    what they are. The merges of the published CLIP come with the package (MIT, OpenAI).

    Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units",
    arXiv:1508.07909; Radford et al. 2021, arXiv:2103.00020.

    Args:
        vocabulary: id by token; that of the published CLIP where it is empty.
        merges: pairs "a b" in the order they are merged; those of the published CLIP where it is empty.

    Raises:
        InvalidInput: one without the other, or a vocabulary without begin and end of text.
    """

    vocabulary: dict[str, int] = field(default_factory=dict)
    merges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.merges) > bool(self.vocabulary):
            raise InvalidInput("merges without the vocabulary they lead to", where="bpe.vocabulary")
        if self.vocabulary and not {START, END} <= set(self.vocabulary):
            raise InvalidInput(f"it lacks {START} or {END}", where="bpe.vocabulary")

    @staticmethod
    def read(folder: str | Path) -> BPE:
        """The tokenizer of a checkpoint's folder, its vocab.json and merges.txt.

        Raises:
            NotFound: a file that is not there.
            InvalidInput: a file that is not what it is called.
        """
        texts = {}
        for name in ("vocab.json", "merges.txt"):
            path = Path(folder) / name
            if not path.is_file():
                raise NotFound(f"there is no {name}", where=str(folder))
            if path.stat().st_size > _MOST_BYTES:
                raise InvalidInput("it is too large to be a vocabulary", where=str(path))
            try:
                texts[name] = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"it cannot be read as UTF-8 text: {error}", where=str(path)) from error
        return BPE.parse(texts["vocab.json"], texts["merges.txt"], str(folder))

    @staticmethod
    def parse(vocabulary: str, merges: str, where: str = "bpe") -> BPE:
        """The tokenizer of the texts of a vocab.json and a merges.txt; of the published, one without data."""
        try:
            table = json.loads(vocabulary)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"vocab.json is not JSON: {error}", where=where) from error
        if not isinstance(table, dict) or not all(
            type(value) is int and 0 <= value < _MOST_TOKENS for value in table.values()
        ):
            raise InvalidInput("vocab.json is no table of numbers by token", where=where)
        # Split at line feeds alone: other characters that end lines are part of tokens.
        lines = [line.removesuffix("\r") for line in merges.split("\n")]
        pairs = tuple(line for line in lines if line and not line.startswith("#version"))
        for pair in pairs:
            left, _, right = pair.partition(" ")
            if not right or not {left, right, left + right} <= table.keys():
                raise InvalidInput(f"merges.txt: {pair!r} does not merge two tokens into one", where=where)
        if table == _published_vocabulary() and pairs == _published_merges():
            return BPE()
        return BPE(table, pairs)

    @cached_property
    def table(self) -> dict[str, int]:
        """Id by token."""
        return self.vocabulary or _published_vocabulary()

    @property
    def pairs(self) -> tuple[str, ...]:
        """The merges "a b", in their order."""
        return self.merges if self.vocabulary else _published_merges()

    @property
    def start(self) -> int:
        """The id that begins every text."""
        return self.table[START]

    @property
    def end(self) -> int:
        """The id that ends every text."""
        return self.table[END]

    def units(self, text: str) -> list[Unit]:
        """The tokens of a text, without begin and end, with the characters they stand for.

        Of several tokens that stand for one character only the first has it.
        """
        text = _storable(text)
        encoding = _tokenizer(self).encode(text, add_special_tokens=False)
        units, reached = [], 0
        for number, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            units.append(Unit(number, text[max(first, reached) : last]))
            reached = max(reached, last)
        return units

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without begin and end."""
        return list(_tokenizer(self).encode(_storable(text), add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """The inverse: ids to text, words with one space between them, begin and end left out."""
        names = {number: name for name, number in self.table.items()}
        joined = "".join(names.get(number, "") for number in ids if number not in (self.start, self.end))
        letters = {letter: byte for byte, letter in _letters().items()}
        spaced = joined.replace(_WORD_END, " ")
        plain = b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in spaced)
        return plain.decode("utf-8", errors="replace").strip()

    def __hash__(self) -> int:
        return hash((len(self.vocabulary), self.merges))

    def __deepcopy__(self, memo: dict[int, Any]) -> BPE:
        return self


# Kept by value: it takes half a second to make, and the towers of one model share a vocabulary.
@lru_cache(maxsize=4)
def _tokenizer(bpe: BPE) -> Tokenizer:
    """The compiled encoder."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise MissingExtra(
            "reading prompts needs the package tokenizers", where="bpe", do="pip install 'sfumato[text]'"
        ) from error
    model = models.BPE(
        vocab=bpe.table,
        merges=[(left, right) for left, _, right in (pair.partition(" ") for pair in bpe.pairs)],
        end_of_word_suffix=_WORD_END,
        unk_token=END,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (START, END)])
    return tokenizer


def _storable(text: str) -> str:
    """The text with halves of characters, which no encoding knows, replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


@cache
def _letters() -> dict[int, str]:
    """A visible letter for each of the 256 bytes, those that have none of their own last."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def _published_merges() -> tuple[str, ...]:
    with gzip.open(ASSETS / "clip_merges.txt.gz", "rt", encoding="utf-8", newline="\n") as file:
        return tuple(file.read().rstrip("\n").split("\n"))


@cache
def _published_vocabulary() -> dict[str, int]:
    letters = list(_letters().values())
    merged = (pair.replace(" ", "") for pair in _published_merges())
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *merged, START, END]
    return {token: number for number, token in enumerate(tokens)}
