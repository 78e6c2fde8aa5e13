import hashlib
import json
import zipfile

import pytest
import torch

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.emoji import ASSETS, Emoji, unpack
from sfumato.data.images import Images
from sfumato.registry import build, describe


@pytest.fixture(scope="module")
def everything():
    return Emoji(split="all")


def of_style(data, style):
    return [d for d in data.drawings if d.style == style and not d.skin_tone]


def test_exact_counts(everything):
    counts = {
        split: [len(Emoji((style,), split=split)) for style in ("noto", "fluent 3d") if "skin" not in split]
        or [len(Emoji(split=split))]
        for split in ("train", "held_out", "skin_tones", "skin_tones_held_out")
    }
    assert counts == {
        "train": [1724, 1445],
        "held_out": [187, 162],
        "skin_tones": [1695],
        "skin_tones_held_out": [180],
    }
    assert len(everything) == 5393
    assert len({d.concept for d in everything.drawings}) == 1911
    assert (ASSETS / "emoji.zip").stat().st_size <= 16 * 10**6


def test_own_sizes(everything):
    sizes = {}
    for i in range(0, len(everything), 25):
        drawing = everything.drawings[i]
        sizes.setdefault(drawing.style, set()).add(everything.picture(i).size)
    assert sizes == {"noto": {(64, 64)}, "fluent 3d": {(128, 128)}}


@pytest.mark.parametrize(
    "code, concept, category, word",
    [
        ("1f34e", "red apple", "Food & Drink", "fruit"),
        ("1f600", "grinning face", "Smileys & Emotion", "grinning"),
        ("2764", "red heart", "Smileys & Emotion", "heart"),
        ("1f636-200d-1f32b", "face in clouds", "Smileys & Emotion", "neutral"),
        ("1f408", "cat", "Animals & Nature", "mammal"),
        ("1f42a", "dromedary camel", "Animals & Nature", "mammal"),
        ("2744", "snowflake", "Travel & Places", "weather"),
    ],
)
def test_both_styles_are_joined_to_their_names(everything, code, concept, category, word):
    found = [d for d in everything.drawings if d.code == code and not d.skin_tone]
    assert [d.style for d in found] == ["noto", "fluent 3d"]
    for drawing in found:
        assert (drawing.concept, drawing.category) == (concept, category)
        assert word in drawing.keywords
        assert drawing.file.endswith(f"/{code}.webp")


def test_joined_pictures_show_what_their_name_says():
    """Hearts and discs named by a colour are of that colour in both styles."""
    tests = {
        "red": lambda r, g, b: r > g + 0.3 and r > b + 0.2,
        "green": lambda r, g, b: g > r + 0.1 and g > b,
        "blue": lambda r, g, b: b > r + 0.3 and b > g,
        "yellow": lambda r, g, b: r > b + 0.3 and g > b + 0.2,
    }
    pairs = (
        "red heart",
        "blue heart",
        "yellow heart",
        "large red circle",
        "large yellow circle",
        "large blue circle",
    )
    for style in ("noto", "fluent 3d"):
        data = Emoji((style,), split="all", concepts=(*pairs, "large green circle", "green heart"))
        assert len(data) == 8
        for image, inputs in data:
            color = next(name for name in tests if name in inputs["concept"])
            assert tests[color](*image[:, 24:40, 28:36].mean((1, 2)).tolist()), (style, inputs["concept"])


def test_a_name_is_one_concept_and_a_concept_one_name(everything):
    drawings = of_style(everything, "noto")
    assert len({d.concept for d in drawings}) == len({d.code for d in drawings}) == len(drawings)
    assert len({d.caption for d in everything.drawings if d.style == "noto"}) == 3786


def test_captions_and_articles(everything):
    captions = {d.caption for d in everything.drawings}
    assert {"waving hand, medium-dark skin tone", "handshake, light and dark skin tones"} <= captions
    assert {"flag of Chad", "clock showing half past two", "family of a man, a woman and a boy"} <= captions
    articles = {d.concept: d.article for d in everything.drawings}
    expected = {
        "red apple": "a",
        "owl": "an",
        "unicorn face": "a",
        "hourglass": "an",
        "grapes": "",
        "octopus": "an",
    }
    assert {name: articles[name] for name in expected} == expected
    for name in ("scissors", "bread", "cherries", "pancakes", "wine glass", "x-ray", "cactus"):
        assert articles[name] == {"wine glass": "a", "x-ray": "an", "cactus": "a"}.get(name, "")


def test_the_held_out_concepts_are_held_out_in_both_styles(everything):
    held = {d.concept for d in everything.drawings if d.held_out}
    seen = {d.concept for d in everything.drawings if not d.held_out}
    assert not held & seen
    assert 0.08 < len(held) / 1911 < 0.12
    for style in ("noto", "fluent 3d"):
        assert {d.concept for d in Emoji((style,)).drawings} <= seen
        assert {d.concept for d in Emoji((style,), split="held_out").drawings} <= held
    assert {d.concept for d in Emoji(split="skin_tones").drawings} <= seen


def test_the_choice_is_the_hash_of_the_code_point(everything):
    by_hash = agreed = 0
    for drawing in of_style(everything, "noto"):
        low = int.from_bytes(hashlib.sha256(drawing.code.encode()).digest()[:8], "big") < 0.1 * 2**64
        by_hash += low
        agreed += low == drawing.held_out
    assert agreed >= 1911 - 20, "all but those drawn with the same picture as another concept"
    assert 150 < by_hash < 230


def test_no_held_out_picture_is_among_those_trained_on():
    """Flags of dependencies are drawn like those of their states: they must lie on the same side."""
    seen = {hashlib.sha256(item.image.numpy().tobytes()).digest() for item in Emoji(size=64)}
    for item in Emoji(split="held_out", size=64):
        assert hashlib.sha256(item.image.numpy().tobytes()).digest() not in seen, item.inputs["concept"]


def test_items():
    data = Emoji(("noto",), size=32, concepts=("red apple", "lemon"), background=(0, 0, 255))
    image, inputs = data[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert image[:, 0, 0].tolist() == [-1.0, -1.0, 1.0]
    assert set(inputs) == {"caption", "concept", "style", "category", "subcategory", "keywords", "skin_tone"}
    assert sorted(data.labels("concept")) == ["lemon", "red apple"]
    assert data.labels("style") == ["noto"]
    assert Emoji(categories=("Flags",)).labels("category") == ["Flags"]


def test_no_dark_rim():
    """Laid on white and scaled, light drawings show nothing darker than their own darkest solid pixel."""
    for style in ("noto", "fluent 3d"):
        data = Emoji(
            (style,), size=50, split="all", concepts=("large yellow circle", "cloud", "full moon", "lemon")
        )
        for i, item in enumerate(data):
            own = torch.tensor(list(data.picture(i).get_flattened_data()), dtype=torch.float32) / 127.5 - 1
            darkest = own[own[:, 3] > 0.99][:, :3].mean(1).min()
            assert item.image.mean(0).min() > darkest - 0.1, (style, item.inputs["concept"])


def test_described_and_built_again():
    for data in (Emoji(), Emoji(("noto",), size=32, concepts=("lemon", "owl"), background=(0, 0, 0))):
        assert build("data", json.loads(json.dumps(describe(data)))) == data
    assert describe(Emoji(size=32)) == {"name": "emoji", "size": 32}


def test_flip_follows_the_seed():
    data, plain = Emoji(("noto",), size=16, flip=True), Emoji(("noto",), size=16)
    same = [torch.equal(data.load(9, seed).image, plain[9].image) for seed in range(200)]
    assert 70 < sum(same) < 130
    assert torch.equal(data.load(9, same.index(False)).image.flip(2), plain[9].image)


@pytest.mark.parametrize(
    "field, near",
    [
        ({"concepts": ("red appel",)}, "red apple"),
        ({"styles": ("noto 3d",)}, "noto"),
        ({"split": "heldout"}, "held_out"),
        ({"categories": ("Flag",)}, "Flags"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(field, near):
    with pytest.raises(NotFound, match=near):
        Emoji(**field)


def test_choices_that_leave_nothing():
    with pytest.raises(InvalidInput, match="no picture"):
        Emoji(split="skin_tones", concepts=("red apple",))
    with pytest.raises(InvalidInput, match="size"):
        Emoji(size=4)


def test_fingerprint():
    one = Emoji(size=32).fingerprint()
    assert one == Emoji(size=32).fingerprint()
    others = [
        Emoji(size=64),
        Emoji(("noto",), size=32),
        Emoji(size=32, flip=True),
        Emoji(size=32, split="held_out"),
    ]
    assert len({one, *(other.fingerprint() for other in others)}) == 5


def test_the_licences_stand_beside_the_archive():
    notice = (ASSETS / "NOTICE.txt").read_text()
    for name in ("LICENSE-noto-emoji.txt", "LICENSE-fluent-emoji.txt", "LICENSE-emoji-data.txt"):
        assert name in notice
        assert (
            "Permission is hereby granted" in (text := (ASSETS / name).read_text())
            or "Apache License" in text
        )


def test_the_archive_is_plain_and_undated():
    with zipfile.ZipFile(ASSETS / "emoji.zip") as archive:
        entries = archive.infolist()
        assert [e.filename for e in entries] == sorted(e.filename for e in entries)
        assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {e.compress_type for e in entries} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_unpacked_files_are_read_back_by_images(tmp_path, everything):
    calls = []
    out = tmp_path / "emoji"
    out.mkdir()
    assert unpack(out, lambda done, total: calls.append((done, total))) == 5393
    assert calls[-1] == (5393, 5393)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["emoji"], "no draft is left beside"
    assert (out / "NOTICE.txt").is_file()
    with pytest.raises(InvalidInput, match="not empty"):
        unpack(out)
    data = Images(str(out), size=64)
    assert len(data) == 5393
    assert data.bad == []
    place = {entry.name: i for i, entry in enumerate(data.entries)}
    for i in range(0, len(everything), 97):
        ours = everything[i]
        image, inputs = data[place[everything.drawings[i].file]]
        assert torch.equal(image, ours.image)
        assert {key: inputs[key] for key in ours.inputs} == ours.inputs
        assert inputs["split"] == everything.drawings[i].split


def test_an_interrupted_unpacking_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "emoji", stop)
    assert list(tmp_path.iterdir()) == []


def test_pairs_of_two_hands():
    data = Emoji(("fluent 3d",), size=32, source="noto", split="held_out")
    plain = Emoji(("noto",), size=32, split="held_out")
    place = {(drawing.code, drawing.skin_tone): index for index, drawing in enumerate(plain.drawings)}
    assert len(data) > 100
    for index in range(0, len(data), 20):
        drawing = data.drawings[index]
        assert drawing.style == "fluent 3d"
        assert torch.equal(data[index].inputs["image"], plain[place[drawing.code, drawing.skin_tone]].image)
    both = Emoji(size=32, concepts=("lemon",), source="noto", flip=True)
    assert len(both) == 1
    first, seen = both[0], set()
    for seed in range(20):
        image, inputs = both.load(0, seed)
        same = torch.equal(image, first.image)
        assert same == torch.equal(inputs["image"], first.inputs["image"])
        seen.add(same)
    assert seen == {True, False}
    with pytest.raises(NotFound, match="noto"):
        Emoji(source="notto")
    assert (
        both.fingerprint()
        != Emoji(size=32, concepts=("lemon",), styles=("fluent 3d",), flip=True).fingerprint()
    )
