"""Recoloured: the embedded emoji in colours they never had, so that a model learns what colour words mean."""

from __future__ import annotations

import functools
import hashlib
import random
import re
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.data.emoji import Drawing, Emoji, drawn
from sfumato.data.item import Item, hash_of, position
from sfumato.data.picture import fit, over, to_bytes, to_image
from sfumato.data.wording import asked

HUES = {
    "red": 0,
    "orange": 28,
    "yellow": 52,
    "green": 120,
    "turquoise": 175,
    "blue": 220,
    "purple": 275,
    "pink": 325,
}
"""Degrees of the colour circle (HSV) that the words stand for."""

CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")

_WORDS = re.compile(rf"\b({'|'.join(HUES)}|brown|black|white|grey|gray)\b ?")
_COLORED = 0.25  # saturation and value from which a pixel has a colour
_WIDE = 30.0  # degrees


def dominant(picture: Image.Image) -> tuple[float, float]:
    """The hue of a picture's colours in degrees, and the share of its opaque pixels that are within 30 of it.

    Args:
        picture: RGBA; what is not opaque does not count.
    """
    hue, colored, solid = _hues(picture)
    if not int(colored.sum()):
        return 0.0, 0.0
    counts = torch.histc(hue[colored], 360, 0, 360)
    # Near hues count more, or every place within 30 degrees of a lone peak would be as good as the peak.
    near = 31 - (torch.arange(61) - 30.0).abs()
    best = int((torch.cat([counts[-30:], counts, counts[:30]]).unfold(0, 61, 1) * near).sum(1).argmax())
    angle = torch.deg2rad(hue[colored & (_apart(hue, best) <= _WIDE)])
    mean = float(torch.rad2deg(torch.atan2(angle.sin().mean(), angle.cos().mean()))) % 360
    return mean, float((colored & (_apart(hue, mean) <= _WIDE)).sum() / solid.sum())


def turned(picture: Image.Image, degrees: float) -> Image.Image:
    """A picture with all hues moved along the colour circle, saturation, value and opacity as they were."""
    bands = list(picture.convert("RGB").convert("HSV").split())
    bands[0] = bands[0].point([round(value + degrees * 255 / 360) % 255 for value in range(256)])
    made = Image.merge("HSV", bands).convert("RGB")
    made.putalpha(picture.getchannel("A"))
    return made


@dataclass
class Recolored:
    """Drawings of mainly one colour, their hues turned to those of eight words, and prompts that say them.

    Taken are things in which half of the opaque pixels have one hue. A colour word in a thing's name gives
    way ("red apple" in blue is "a blue apple"). Inputs are caption, concept (without colour), color, style.
    A tenth of the pairs of thing and colour, chosen by hash, are held out: for tests of new combinations.

    Args:
        styles: "noto" and "fluent 3d".
        size: height and width of the images.
        split: of the pairs: "train" or "held_out"; all are of concepts that are not held out.
        categories: of the emoji used.

    Raises:
        NotFound: unknown styles or categories.
        InvalidInput: no thing of one colour is among them, or an unknown split.
    """

    styles: tuple[str, ...] = ("noto", "fluent 3d")
    size: int = 64
    split: Literal["train", "held_out"] = "train"
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self) -> None:
        if self.split not in ("train", "held_out"):
            raise NotFound(
                f"unknown split {self.split!r}",
                where="recolored",
                do=nearest(self.split, ("train", "held_out")),
            )
        self.emoji = Emoji(self.styles, size=self.size, categories=self.categories)
        self.pairs: list[tuple[int, str, float]] = []
        for number, drawing in enumerate(self.emoji.drawings):
            own, share = _own(drawing)
            if share < 0.5:
                continue
            for word, hue in HUES.items():
                # What has the colour already is said so by the others of its kind, not by this set.
                far = abs((own - hue + 180) % 360 - 180) > _WIDE
                if far and _is_held_out(drawing, word) == (self.split == "held_out"):
                    self.pairs.append((number, word, hue - own))
        if not self.pairs:
            raise InvalidInput("no thing is of one colour", where="recolored", do="choose other categories")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, seed=0)

    def load(self, index: int, seed: int) -> Item:
        """The item of an index; the seed decides how it is asked for."""
        number, word, degrees = self.pairs[position(index, len(self), "recolored")]
        drawing = self.emoji.drawings[number]
        plain = over(turned(self.emoji.picture(number), degrees), (255, 255, 255))
        image = to_image(to_bytes(fit(plain, (self.size, self.size))[0]))
        name = bare(drawing.concept)
        article = ("an" if word[0] in "aeiou" else "a") if drawing.article else ""
        caption = asked(f"{word} {name}", article, drawing.style, (), "", random.Random(f"{seed}:{index}"))
        inputs = {"caption": caption, "concept": name, "color": word, "style": drawing.style}
        return Item(image, inputs)

    def fingerprint(self) -> str:
        """SHA-256 of the drawings and the settings."""
        return hash_of(self, [self.emoji.fingerprint(), self.pairs])


@functools.cache
def _own(drawing: Drawing) -> tuple[float, float]:
    """Its dominant hue and the share of it: the same for every set of a process, and seconds for them all."""
    return dominant(drawn(drawing))


def bare(concept: str) -> str:
    """A concept's name without colours: "red apple" is "apple"; what would be nothing stays."""
    return _WORDS.sub("", concept).strip() or concept


def _hues(picture: Image.Image) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, which pixels have a colour, and which are opaque, each (H, W)."""
    hsv = to_bytes(picture.convert("RGB").convert("HSV"))
    solid = to_bytes(picture.getchannel("A"))[0] >= 128
    level = 255 * _COLORED
    return hsv[0] * (360 / 255), solid & (hsv[1] >= level) & (hsv[2] >= level), solid


def _apart(hue: Tensor, other: float) -> Tensor:
    return ((hue - other + 180) % 360 - 180).abs()


def _is_held_out(drawing: Drawing, word: str) -> bool:
    # By the thing, not the hand: a pair that is new is new in both styles.
    digest = hashlib.sha256(f"{drawing.code}:{word}".encode()).digest()
    return digest[0] % 10 == 0
