"""Wording: the many ways in which people ask for one thing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_STYLED = ("{thing}, {style}", "{thing}, {style}", "{thing}, {style} style", "{style} {thing}")


def asked(
    name: str,
    article: str,
    style: str,
    keywords: Sequence[str],
    subcategory: str,
    chance: random.Random,
    also: str = "",
) -> str:
    """A prompt for one thing, e.g. "a red apple, fluent 3d", "red apple emoji", "red apple, fruit, noto".

    Six of ten have the article, one of seven another name of the thing where it has one, one of five says
    what kind of thing it is, and one of eight says no style. All numbers are drawn whatever comes of them.

    Args:
        name: of the thing.
        article: before it: "a", "an" or none.
        style: of the picture; "" is never said.
        keywords: other names of it, and words for its kind, which are parts of the subcategory's name.
        subcategory: e.g. "food-fruit".
        chance: decides.
        also: said after the name, such as a skin tone.
    """
    form, alias, more, which, styled, way = (chance.random() for _ in range(6))
    kinds = re.split(r"[-&\s]+", subcategory)
    names = [word for word in keywords if word not in kinds]
    about = [word for word in keywords if word in kinds]
    if names and alias < 1 / 7:
        name, article = names[int(which * len(names))], ""
    thing = f"{article} {name}".strip() if form < 0.6 else f"{name} emoji" if form < 0.7 else name
    if also:
        thing = f"{thing}, {also}"
    if about and more < 0.2:
        thing = f"{thing}, {about[int(which * len(about))]}"
    return styled_as(thing, style, styled, way)


def styled_as(thing: str, style: str, styled: float, way: float) -> str:
    """What is asked for with its style, said in one of a few ways.

    Args:
        thing: what is asked for.
        style: of the picture; "" is never said.
        styled: an even number from 0 to 1: the style is said in seven of eight cases.
        way: another, which decides how.
    """
    if not style or styled < 0.125:
        return thing
    return _STYLED[int(way * len(_STYLED))].format(thing=thing, style=style)
