"""BPE: the ids of the published tokenizer, from the merges that come with the package or a folder's files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.encoders.bpe import BPE, END, START, _published_merges, _published_vocabulary
from sfumato.registry import build, describe

AWKWARD = [
    "",
    " ",
    "\t\n  \r\n",
    "a photo of an astronaut riding a horse",
    "It's 42°C; they'll've DON'T, i'd 'em",
    "naïve café — ÅNGSTRÖM ﬁne İstanbul ß ẞ",
    "e\u0301 and é, A\u030a and Å",
    "🙂👩‍👩‍👧‍👦🇩🇪 emoji🙂glued",
    "&amp; &lt;b&gt; &#39;quoted&#39;",
    "x" * 3000,
    "supercalifragilisticexpialidocious" * 9,
    "日本語の文章 한국어 العربية हिन्दी ไทย",
    "1234567890 3.14159 1e-5 ½ Ⅷ ٣",
    '!!!???...,,, @#$%^&*()_+{}|:"<>?~`',
    "under_score-and-dash/slash\\back",
    "zero\u200bwidth\u00a0nbsp\u3000ideographic\ufeffbom",
    f"{END} inside {START} text <|EndOfText|>",
    f"a{END}b",
    "(masterpiece:1.3), [blurry], ((best quality))",
    "\x00\x01\x7f control",
    "a  b   c\u2003d",
    "'s 't 're 've 'm 'll 'd 'S",
]


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import CLIPTokenizer

    merges = [tuple(pair.split(" ")) for pair in _published_merges()]
    return CLIPTokenizer(vocab=dict(_published_vocabulary()), merges=merges)


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_texts_have_the_ids_of_transformers(reference: Any, text: str) -> None:
    assert BPE().ids(text) == reference(text, add_special_tokens=False).input_ids
    assert [unit.id for unit in BPE().units(text)] == BPE().ids(text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_has_the_ids_of_transformers(reference: Any, text: str) -> None:
    assert BPE().ids(text) == reference(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "text, ids",
    [
        ("hello world!", [3306, 1002, 256]),
        ("a photo of an astronaut riding a horse", [320, 1125, 539, 550, 18376, 6765, 320, 4558]),
        ("A red square, 128px", [320, 736, 3999, 267, 272, 273, 279, 10262]),
        ("naïve café 🙂", [1097, 35689, 563, 15304, 14860]),
        ("sks dog", [48136, 1929]),
    ],
)
def test_ids_of_the_original(text: str, ids: list[int]) -> None:
    """Made once with OpenAI's own tokenizer."""
    assert BPE().ids(text) == ids


def test_the_published_vocabulary() -> None:
    bpe = BPE()
    assert len(bpe.table) == 49408
    assert (bpe.start, bpe.end, bpe.table["!"], bpe.table["!</w>"]) == (49406, 49407, 0, 256)
    assert len(_published_merges()) == 48894


def test_units_hold_the_text_and_ids_lead_back_to_it() -> None:
    text = "A naïve astronaut's 🙂, 42 x"
    units = BPE().units(text)
    assert "".join(unit.text for unit in units).replace(" ", "") == text.replace(" ", "")
    assert BPE().text([49406, *BPE().ids(text), 49407]) == "a naïve astronaut 's 🙂, 4 2 x"


def test_halves_of_characters_do_no_harm() -> None:
    assert BPE().ids("a \ud83d b") == BPE().ids("a ? b")


def _write(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> Path:
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


SMALL = {name: i for i, name in enumerate([START, END, "a", "b", "a</w>", "b</w>", "ab</w>", "bab</w>"])}


def test_a_folder_with_the_published_vocabulary_is_the_published(tmp_path: Path) -> None:
    read = BPE.read(_write(tmp_path, dict(_published_vocabulary()), list(_published_merges())))
    assert describe(read) == {"name": "bpe"}


def test_a_folder_of_ones_own_comes_back_from_its_description(tmp_path: Path) -> None:
    read = BPE.read(_write(tmp_path, SMALL, ["a b</w>", "b ab</w>"]))
    assert read.ids("bab ab a") == [7, 6, 4]
    assert (read.start, read.end) == (0, 1)
    again = build("encoder", json.loads(json.dumps(describe(read))))
    assert again == read
    assert again.ids("bab ab a zz") == [7, 6, 4, *[1] * 2]
    assert copy.deepcopy(read).ids("ab") == [6]


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("vocab.json", "{", "not JSON"),
        ("vocab.json", "[1]", "no table of numbers"),
        ("vocab.json", '{"a": "b"}', "no table of numbers"),
        ("vocab.json", "[" * 100000, "not JSON"),
        ("merges.txt", "a b</w>\nq r\n", "'q r' does not merge"),
        ("merges.txt", "ab\n", "'ab' does not merge"),
    ],
)
def test_files_that_are_not_what_they_are_called(tmp_path: Path, name: str, content: str, match: str) -> None:
    (_write(tmp_path, SMALL, ["a b</w>"]) / name).write_text(content)
    with pytest.raises(InvalidInput, match=match):
        BPE.read(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no vocab\.json"):
        BPE.read(tmp_path)
    with pytest.raises(InvalidInput, match="lacks"):
        BPE({"a": 0}, ())
    with pytest.raises(InvalidInput, match="merges without the vocabulary"):
        BPE(merges=("a b",))
    (_write(tmp_path, SMALL, []) / "vocab.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidInput, match="UTF-8"):
        BPE.read(tmp_path)
