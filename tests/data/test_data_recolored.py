import collections
import random

import pytest
import torch
from PIL import Image

from sfumato.core.errors import NotFound
from sfumato.data.emoji import Emoji
from sfumato.data.recolored import HUES, Recolored, bare, dominant, turned
from sfumato.generation.images import to_image


def disc(color: tuple[int, int, int], size: int = 32) -> Image.Image:
    """A disc of one colour on nothing."""
    places = torch.arange(size) - (size - 1) / 2
    alpha = (places[:, None] ** 2 + places[None] ** 2 <= (size / 2) ** 2).to(torch.uint8) * 255
    picture = Image.new("RGB", (size, size), color)
    picture.putalpha(Image.frombytes("L", (size, size), bytes(alpha.flatten().tolist())))
    return picture


@pytest.mark.parametrize(
    ("color", "hue"), [((255, 0, 0), 0), ((0, 255, 0), 120), ((0, 0, 255), 240), ((255, 0, 128), 330)]
)
def test_the_dominant_hue_of_one_colour_is_that_colour(color: tuple[int, int, int], hue: float) -> None:
    found, share = dominant(disc(color))
    assert abs((found - hue + 180) % 360 - 180) < 1.5
    assert share == 1.0


def test_the_dominant_hue_is_the_larger_ones_and_grey_has_none() -> None:
    picture = disc((255, 0, 0))
    half = disc((0, 0, 255)).crop((0, 0, 32, 10))
    picture.paste(half, (0, 0), half)
    found, share = dominant(picture)
    assert abs((found + 180) % 360 - 180) < 1.5
    assert 0.5 < share < 0.8
    assert dominant(disc((128, 128, 128))) == (0.0, 0.0)


def test_turning_moves_hues_and_leaves_the_opacity() -> None:
    picture = disc((220, 40, 40))
    blue = turned(picture, 220)
    assert blue.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert abs(dominant(blue)[0] - 220) < 2  # hues are kept in 255 steps
    assert blue.getpixel((16, 16))[:3] == pytest.approx((40, 100, 220), abs=8)
    back = turned(blue, -220)
    assert back.getpixel((16, 16))[:3] == pytest.approx((220, 40, 40), abs=8)


def test_pictures_have_the_colour_that_is_said_and_the_prompt_says_no_other() -> None:
    data = Recolored(size=32)
    right = 0
    for index in random.Random(0).sample(range(len(data)), 60):
        item = data.load(index, 1)
        picture = to_image(item.image).convert("RGBA")
        white = (item.image > 0.97).all(0)
        picture.putalpha(Image.fromarray((~white).numpy().astype("uint8") * 255))
        hue, _ = dominant(picture)
        right += abs((hue - HUES[item.inputs["color"]] + 180) % 360 - 180) < 25
        said = [word for word in HUES if word in item.inputs["caption"].replace(",", " ").split()]
        assert said == [item.inputs["color"]]
    assert right >= 55


def test_a_pair_is_held_out_in_both_styles_or_in_none() -> None:
    train, held_out = Recolored(size=16), Recolored(size=16, split="held_out")

    def pairs(data: Recolored) -> set[tuple[str, str]]:
        return {(data.emoji.drawings[number].code, word) for number, word, _ in data.pairs}

    assert not pairs(train) & pairs(held_out)
    assert 0.07 < len(held_out) / (len(train) + len(held_out)) < 0.13
    assert not {data.concept for data in Emoji(split="held_out").drawings} & {
        train.emoji.drawings[number].concept for number, *_ in train.pairs
    }
    counts = collections.Counter(word for _, word, _ in train.pairs)
    assert set(counts) == set(HUES)


def test_names_lose_their_colours_but_not_all_of_themselves() -> None:
    assert bare("red apple") == "apple"
    assert bare("large orange diamond") == "large diamond"
    assert bare("shirt") == "shirt"
    assert bare("orange") == "orange"


def test_what_it_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(NotFound, match="held_out"):
        Recolored(split="held")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="Food & Drink"):
        Recolored(categories=("Food",))
