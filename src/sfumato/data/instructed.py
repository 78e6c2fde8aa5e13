"""Instructed: pairs of emoji before and after a change, and the words that ask for it."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple

from torch import Tensor

from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Drawing, Emoji
from sfumato.data.item import Item, distinct, hash_of, position
from sfumato.data.recolored import Recolored

KINDS = ("skin", "person", "style", "color")
"""What is changed: the tone of skin, man and woman, the hand that drew it, the colour."""

_ASKED = {
    "skin": ("make the skin tone {to}", "{to} skin tone", "give them {to} skin"),
    "person": ("make it a {to}", "turn the {of} into a {to}", "a {to} instead"),
    "style": ("draw it as {to}", "in {to} style", "make it {to}"),
    "color": ("make it {to}", "color it {to}", "turn it {to}"),
}
_ONE = re.compile(r"\b(man|woman)\b")


class Change(NamedTuple):
    """A picture before and after, by index, what of it is changed and to what."""

    kind: str
    before: int
    after: int
    of: str
    to: str


@dataclass
class Instructed:
    """Pairs in which one thing differs, told as the picture before (`image`) and an instruction (`caption`).

    From the embedded set come skin tones (any of six to any other, of the same thing), men and women of the
    same trade and tone, Noto's drawings and Fluent's renderings of a thing, and things of one colour turned
    to another (`recolored`); all but colours go both ways. Inputs are image, caption, kind, to.

    Brooks, Holynski & Efros 2022, "InstructPix2Pix: Learning to Follow Image Editing Instructions",
    arXiv:2211.09800, section 3.1, had such pairs drawn by a model; these are drawn by hand.

    Args:
        kinds: of change: "skin", "person", "style", "color".
        size: height and width.
        split: "train", or "held_out": things (of colours: pairs of thing and colour) kept from training.

    Raises:
        InvalidInput: unknown kinds or split, or none.
    """

    kinds: tuple[str, ...] = KINDS
    size: int = 64
    split: Literal["train", "held_out"] = "train"

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InvalidInput(f"{list(self.kinds)} are not of {', '.join(KINDS)}", where="instructed.kinds")
        if self.split not in ("train", "held_out"):
            raise InvalidInput(f"{self.split!r} is neither train nor held_out", where="instructed.split")
        self.emoji = Emoji(size=self.size, split="all")
        self._colors = Recolored(size=self.size, split=self.split) if "color" in self.kinds else None
        self.changes = [change for kind in self.kinds for change in self._changes(kind)]

    def __len__(self) -> int:
        return len(self.changes)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The pair of an index; the seed decides how the change is asked for."""
        index = position(index, len(self), "instructed")
        change = self.changes[index]
        before, after = self._shown(change)
        words = random.Random(f"instructed:{seed}:{index}").choice(_ASKED[change.kind])
        caption = words.format(of=change.of, to=change.to)
        return Item(after, {"image": before, "caption": caption, "kind": change.kind, "to": change.to})

    def labels(self, key: str) -> list[str]:
        """The distinct values of an input: of captions all that are asked, in every wording."""
        if key == "caption":
            ways = (words.format(of=c.of, to=c.to) for c in self.changes for words in _ASKED[c.kind])
            return distinct(ways)
        return distinct(getattr(change, key, None) for change in self.changes)

    def fingerprint(self) -> str:
        """SHA-256 of the drawings and the settings."""
        return hash_of(self, [self.emoji.fingerprint(), self.changes])

    def _shown(self, change: Change) -> tuple[Tensor, Tensor]:
        if change.kind != "color":
            return self.emoji.load(change.before, 0).image, self.emoji.load(change.after, 0).image
        assert self._colors is not None
        return self._colors.emoji.load(change.before, 0).image, self._colors.load(change.after, 0).image

    def _changes(self, kind: str) -> Iterator[Change]:
        """All changes of a kind, in an order that does not depend on the machine."""
        if kind == "color":
            assert self._colors is not None
            for place, (number, word, _) in enumerate(self._colors.pairs):
                yield Change(kind, number, place, "", word)
            return
        drawings = self.emoji.drawings
        mine = [i for i, d in enumerate(drawings) if d.held_out == (self.split == "held_out")]
        if kind == "person":
            yield from _between(kind, mine, drawings, _trade, _person)
        elif kind == "style":
            yield from _between(kind, mine, drawings, lambda d: (d.code, d.skin_tone), lambda d: d.style)
        else:
            one = [i for i in mine if " and " not in drawings[i].skin_tone]
            yield from _between(kind, one, drawings, lambda d: (d.code, d.style), _tone)


def _between(
    kind: str,
    indices: Sequence[int],
    drawings: Sequence[Drawing],
    alike: Callable[[Drawing], Hashable],
    differs: Callable[[Drawing], str],
) -> Iterator[Change]:
    """Changes between any two drawings that are alike but for one thing."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in indices:
        if differs(drawings[index]):
            groups[alike(drawings[index])].append(index)
    for group in groups.values():
        for before, after in permutations(group, 2):
            of, to = differs(drawings[before]), differs(drawings[after])
            if of != to:
                yield Change(kind, before, after, of, to)


def _tone(drawing: Drawing) -> str:
    """Its skin tone; what has none said is yellow."""
    return drawing.skin_tone or "yellow"


def _person(drawing: Drawing) -> str:
    """ "man" or "woman" where one alone is in its name; else nothing."""
    found = _ONE.findall(drawing.concept)
    return found[0] if len(found) == 1 and " and " not in drawing.concept else ""


def _trade(drawing: Drawing) -> Hashable:
    """What stays the same when a man becomes a woman."""
    return _ONE.sub("person", drawing.concept), drawing.style, drawing.skin_tone
