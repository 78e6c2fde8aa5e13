import random
from collections import Counter

from sfumato.data.emoji import Emoji
from sfumato.data.mixed import Mixed
from sfumato.data.scenes import Scenes
from sfumato.data.wording import asked

APPLE = ("red apple", "a", "noto", ("fruit", "crimson apple"), "food-fruit")


def test_one_thing_is_asked_for_in_many_ways_and_always_by_its_name() -> None:
    said = Counter(asked(*APPLE, random.Random(seed)) for seed in range(4000))
    assert len(said) > 30
    assert all("red apple" in text or "crimson apple" in text for text in said)
    share = {
        word: sum(count for text, count in said.items() if word in text) / 4000
        for word in ("a red apple", "crimson", "fruit", "noto")
    }
    # By the numbers it says of itself; four deviations of 4,000 draws are .03.
    assert abs(share["crimson"] - 1 / 7) < 0.03
    assert abs(share["fruit"] - 0.2) < 0.03
    assert abs(share["noto"] - 7 / 8) < 0.03
    assert abs(share["a red apple"] - 0.6 * 6 / 7) < 0.03


def test_varied_emoji_are_the_same_pictures_asked_for_by_seed() -> None:
    plain, varied = (
        Emoji(size=16, concepts=("red apple",)),
        Emoji(size=16, concepts=("red apple",), wording="varied"),
    )
    for index in range(len(plain)):
        one, other = plain.load(index, 5), varied.load(index, 5)
        assert (one.image == other.image).all()
        assert one.inputs | {"caption": ""} == other.inputs | {"caption": ""}
        assert varied.load(index, 5).inputs["caption"] == other.inputs["caption"]
    assert len({varied.load(0, seed).inputs["caption"] for seed in range(50)}) > 8
    assert "emoji" in varied.labels("caption")
    assert "emoji" not in plain.labels("caption")


def test_varied_skin_tones_say_their_tone() -> None:
    data = Emoji(size=16, split="skin_tones", wording="varied")
    for index in range(0, len(data), 97):
        assert "skin tone" in data.load(index, 1).inputs["caption"]


def test_fixed_scenes_change_their_words_and_nothing_else() -> None:
    data = Scenes(count=10, size=32, fewest=2, most=3, wording="varied", ground="white", fixed=True)
    told = set()
    for seed in range(20):
        one, other = data.load(3, 0), data.load(3, seed)
        assert (one.image == other.image).all()
        assert one.inputs["boxes"] == other.inputs["boxes"]
        told.add(other.inputs["caption"])
    assert len(told) > 5
    assert not (
        Scenes(count=10, size=32).load(3, 0).image == Scenes(count=10, size=32).load(3, 1).image
    ).all()


def test_things_apart_never_overlap_and_stand_on_white() -> None:
    data = Scenes(count=60, size=32, fewest=2, most=3, ground="white", apart=True)
    for index in range(60):
        item = data[index]
        whole = item.inputs["whole"]
        assert int(whole.sum(0).max()) == 1
        assert (item.image[:, 0, 0] == 1).all() or bool(whole[:, :3, :3].any())
        words = item.inputs["caption"]
        assert not any(word in words for word in (" behind ", " in front of ", " close to "))


def test_a_set_repeated_is_seen_as_often_with_other_words() -> None:
    emoji, scenes = Emoji(size=16, split="held_out", wording="varied"), Scenes(count=5, size=16)
    mixed = Mixed((emoji, scenes), repeats=(3, 1))
    n = len(emoji)
    assert len(mixed) == 3 * n + 5
    looks = [mixed.load(7 + n * again, 2) for again in range(3)]
    assert all((look.image == emoji[7].image).all() for look in looks)
    assert len({mixed.load(i + n * again, 2).inputs["caption"] for again in range(3) for i in (7,)}) > 1
    assert (mixed.load(3 * n + 4, 2).image == scenes.load(4, 2).image).all()
