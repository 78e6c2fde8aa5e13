"""The grammar of prompts: (red apple:1.3) is heeded more, [this] less, and BREAK begins anew."""

from __future__ import annotations

import re
from typing import NamedTuple

STEP = 1.1
"""What a pair of round brackets multiplies by, and square brackets divide by."""
MOST = 100.0
"""The weight, of either sign, beyond which none goes."""

_MARKS = re.compile(
    r"""
    \\[()\[\]\\]                                                          # an escaped bracket or backslash
    | :\s*(?P<weight>[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))\s*\)  # a weight and its bracket
    | [()\[\]]
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_CLOSED_BY = {")": "(", "]": "["}


class Piece(NamedTuple):
    """Some text of a prompt and how much it is to be heeded; 1 is plain."""

    text: str
    weight: float = 1.0


class _Mark(NamedTuple):
    """A stretch of the prompt: its text, whether it is one escaped character, a bracket that may open or
    close, and the weight before that.
    """

    text: str
    escaped: bool = False
    bracket: str = ""
    weight: float | None = None


def parse(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """A prompt as its sections, which BREAK sets apart, each as pieces of text with one weight.

    The grammar is that of the A1111 web interface: (a) is a · 1.1, [a] is a / 1.1, (a:1.3) is a · 1.3, they
    multiply where they nest, and a backslash makes brackets and itself plain. Other than there, a bracket
    without its partner is plain text, and so is a lone backslash. Any text is a prompt; white space around
    BREAK, like the brackets, is left out, and all other text is kept.
    """
    marks = _marks(prompt)
    factors = _pairs(marks)
    sections: list[list[tuple[list[str], float]]] = [[]]
    weights = [1.0]
    for number, mark in enumerate(marks):
        if number in factors:
            factor = factors[number]
            if factor is None:
                weights.pop()
            else:
                weights.append(max(-MOST, min(MOST, weights[-1] * factor)))
            continue
        parts = [mark.text] if mark.escaped else _BREAK.split(mark.text)
        for place, part in enumerate(parts):
            text = part.lstrip() if place else part
            if place:
                sections.append([])
            if text := text.rstrip() if place < len(parts) - 1 else text:
                _add(sections[-1], text, weights[-1])
    return tuple(tuple(Piece("".join(texts), weight) for texts, weight in each) for each in sections)


def plain(prompt: str) -> tuple[tuple[Piece, ...], ...]:
    """A prompt whose brackets and backslashes are but text: one section, of weight 1."""
    return ((Piece(prompt),),) if prompt else ((),)


def _add(section: list[tuple[list[str], float]], text: str, weight: float) -> None:
    if section and section[-1][1] == weight:
        section[-1][0].append(text)
    else:
        section.append(([text], weight))


def _marks(prompt: str) -> list[_Mark]:
    marks, reached = [], 0
    for match in _MARKS.finditer(prompt):
        if match.start() > reached:
            marks.append(_Mark(prompt[reached : match.start()]))
        text, weight = match.group(), match.group("weight")
        if weight is not None:
            marks.append(_Mark(text, bracket=")", weight=float(weight)))
        elif text[0] == "\\":
            marks.append(_Mark(text[1], escaped=True))
        else:
            marks.append(_Mark(text, bracket=text))
        reached = match.end()
    if reached < len(prompt):
        marks.append(_Mark(prompt[reached:]))
    return marks


def _pairs(marks: list[_Mark]) -> dict[int, float | None]:
    """By number of the mark, of the brackets that have a partner: the factor they open with, None to close.

    A bracket closes the nearest open one of its kind; those of the other kind in between stay alone.
    """
    factors: dict[int, float | None] = {}
    waiting: list[int] = []
    open_of = {"(": 0, "[": 0}
    for number, mark in enumerate(marks):
        if mark.bracket in open_of:
            waiting.append(number)
            open_of[mark.bracket] += 1
        elif mark.bracket and open_of[_CLOSED_BY[mark.bracket]]:
            while True:
                opened = waiting.pop()
                kind = marks[opened].bracket
                open_of[kind] -= 1
                if kind == _CLOSED_BY[mark.bracket]:
                    break
            usual = STEP if kind == "(" else 1 / STEP
            factors[opened] = usual if mark.weight is None else mark.weight
            factors[number] = None
    return factors
