"""The grammar of prompts: weights as people know them, and no text that it stumbles over."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.core.prompt import MOST, Piece, parse, plain


def flat(prompt: str) -> list[tuple[str, float]]:
    (section,) = parse(prompt)
    return [(piece.text, pytest.approx(piece.weight)) for piece in section]  # type: ignore[misc]


@pytest.mark.parametrize(
    "prompt, pieces",
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((a))[b]", [("a", 1.21), ("b", 1 / 1.1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a \(b\) \[c\] \\d", [(r"a (b) [c] \d", 1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: -.5 )", [("a", -0.5)]),
        ("(a:0)", [("a", 0)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        ("a:1.3", [("a:1.3", 1)]),
        ("time 12:30 (a)", [("time 12:30 ", 1), ("a", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            # As the interface's own example, but that the bracket without a partner is text.
            [
                ("a (", 1),
                ("house", 1.43),
                (" ", 1),
                ("on", 1 / 1.1),
                (" a ", 1),
                ("hill", 0.5),
                (", sun, ", 1),
                ("sky", 1.331),
                (".", 1),
            ],
        ),
    ],
)
def test_weights(prompt: str, pieces: list[tuple[str, float]]) -> None:
    assert flat(prompt) == pieces


@pytest.mark.parametrize(
    "prompt", ["(", ")", "a (b", "a) b", "[a", "]", ")(", "][", "a :1.3)", "(]", ":)", "\\", "\\a"]
)
def test_brackets_without_a_partner_are_text(prompt: str) -> None:
    assert parse(prompt) == ((Piece(prompt),),)


def test_crossing_brackets_pair_by_kind() -> None:
    assert flat("(a [b) c]") == [("a [b", 1.1), (" c]", 1)]


def test_sections() -> None:
    assert parse("a red BREAK (b\nBREAK c:2)") == ((Piece("a red"),), (Piece("b", 2.0),), (Piece("c", 2.0),))
    assert parse("BREAKFAST or aBREAK") == ((Piece("BREAKFAST or aBREAK"),),)
    assert parse("") == ((),)
    assert parse("BREAK") == ((), ())
    assert plain("a (b) BREAK") == ((Piece("a (b) BREAK"),),)


ODD = st.text(alphabet="ab ()[]:\\.-+0123456789BREAK\n", max_size=60) | st.text(max_size=60)


@settings(max_examples=400)
@given(prompt=ODD)
def test_any_text_is_a_prompt_and_none_of_its_text_is_lost(prompt: str) -> None:
    """All that is no syntax: letters but those of BREAK, in their order."""
    sections = parse(prompt)
    assert all(piece.text for section in sections for piece in section)
    assert all(-MOST <= piece.weight <= MOST for section in sections for piece in section)
    said = "".join(piece.text for section in sections for piece in section)
    assert _bare(said) == _bare(prompt)


def _bare(text: str) -> str:
    return re.sub(r"[\s()\[\]\\:.+\-0-9BREAK]", "", text)


@settings(max_examples=200)
@given(prompt=st.text(alphabet=st.characters(exclude_characters="()[]\\"), max_size=60))
def test_plain_text_is_of_weight_one_and_unchanged(prompt: str) -> None:
    if re.search(r"\bBREAK\b", prompt):
        return
    assert parse(prompt) == plain(prompt)


TREE = st.recursive(
    st.text(alphabet="abc ,", min_size=1, max_size=5).map(lambda text: [(text, 1.0)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda both: both[0] + both[1]),
        st.tuples(inner, st.sampled_from([0.5, 1.25, 2.0])).map(
            lambda it: [("(", 0.0), *it[0], (":)", it[1])]
        ),
        inner.map(lambda items: [("(", 0.0), *items, (")", 0.0)]),
        inner.map(lambda items: [("[", 0.0), *items, ("]", 0.0)]),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(tree=TREE)
def test_nested_weights_multiply(tree: list[tuple[str, float]]) -> None:
    """A prompt made of brackets that pair, against the product of those around each letter."""
    prompt, wanted, around, opened = "", [], [1.0], []
    closing = {}
    for number, (text, _) in enumerate(tree):
        if text in "([":
            opened.append(number)
        elif text in (")", "]", ":)"):
            closing[opened.pop()] = number
    for number, (text, weight) in enumerate(tree):
        if number in closing:
            close = tree[closing[number]]
            factor = {")": 1.1, "]": 1 / 1.1, ":)": close[1]}[close[0]]
            around.append(around[-1] * factor)
            prompt += text
        elif text in (")", "]", ":)"):
            around.pop()
            prompt += f":{weight})" if text == ":)" else text
        else:
            wanted += [(letter, around[-1]) for letter in text]
            prompt += text
    found = [(letter, piece.weight) for piece in parse(prompt)[0] for letter in piece.text]
    assert [letter for letter, _ in found] == [letter for letter, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted])


def test_hostile_prompts_take_no_time_and_no_infinite_weight() -> None:
    many = 30_000
    assert flat("(" * many + "a" + ")" * many) == [("a", MOST)]
    assert parse("(" * many) == ((Piece("(" * many),),)
    assert parse("([" * many + "])" * many) == parse("")
    assert flat("((a:999999999):0)") == [("a", 0)]
    assert flat("((a:-999999999):999999999)") == [("a", -MOST)]
    assert len(parse(":" * many + " " * many + ")")[0]) == 1
