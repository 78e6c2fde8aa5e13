import json
import random

import pytest
import torch
from PIL import Image

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.pairs import Pairs
from sfumato.registry import build, describe


def noise(size, seed, mode="RGB"):
    chance = random.Random(seed)
    bands = {"RGB": 3, "L": 1}[mode]
    return Image.frombytes(mode, size, bytes(chance.randrange(256) for _ in range(bands * size[0] * size[1])))


@pytest.fixture
def folders(tmp_path):
    """Sources are the targets' negatives, twice as large, in other formats, in folders of labels."""
    shapes = [(24, 16), (16, 24), (20, 20), (30, 16), (16, 16), (24, 24)]
    for number, size in enumerate(shapes):
        place = "cat" if number % 2 else "dog"
        target, source = (tmp_path / side / place for side in ("target", "source"))
        for folder in (target, source):
            folder.mkdir(parents=True, exist_ok=True)
        picture = noise(size, number)
        picture.save(target / f"{number}.png")
        negative = picture.point(lambda value: 255 - value)
        large = negative.resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST)
        large.save(source / f"{number}.webp", lossless=True)
        (target / f"{number}.txt").write_text(f"the {place} {number}")
        (source / f"{number}.txt").write_text("not read")
    return tmp_path


def pairs(folders, **settings):
    return Pairs(str(folders / "source"), str(folders / "target"), **{"size": 16, **settings})


def test_both_sides_are_cut_and_mirrored_alike(folders):
    """A picture and its negative sum to nothing wherever they are cut alike."""
    data, seen = pairs(folders, crop="random", flip=True), set()
    for seed in range(12):
        for index in range(len(data)):
            image, inputs = data.load(index, seed)
            assert inputs["image"].shape == image.shape == (3, 16, 16)
            assert (image + inputs["image"]).abs().mean() < 0.15
            seen.add((index, inputs["crop"], float(image.sum())))
    assert len(seen) > 40
    assert torch.equal(
        pairs(folders, crop="random").load(3, 7).image, pairs(folders, crop="random").load(3, 7)[0]
    )


def test_captions_labels_and_sizes_are_the_targets(folders):
    data = pairs(folders)
    found = [data[index].inputs for index in range(6)]
    assert sorted(each["caption"] for each in found) == sorted(
        f"the {'cat' if i % 2 else 'dog'} {i}" for i in range(6)
    )
    assert data.labels() == ["cat", "dog"]
    assert all(each["label"] in each["caption"] for each in found)
    assert {each["original_size"] for each in found} >= {(16, 24), (24, 16), (20, 20)}


def test_buckets(folders):
    data = pairs(folders, buckets=((16, 16), (16, 24), (24, 16)))
    for index in range(6):
        image, inputs = data[index]
        assert (
            image.shape[1:]
            == inputs["image"].shape[1:]
            == data.sizes[data.bucket_of(index)]
            == inputs["size"]
        )
    assert len({data.bucket_of(index) for index in range(6)}) == 3


def test_pictures_without_a_partner_are_named_or_left_out(folders):
    noise((16, 16), 9).save(folders / "source" / "lonely.png")
    (folders / "target" / "cat" / "1.png").unlink()
    with pytest.raises(InvalidInput) as error:
        pairs(folders)
    assert "source cat/1.webp" in str(error.value)
    assert "source lonely.png" in str(error.value)
    assert len(pairs(folders, unmatched="leave")) == 5


def test_two_of_one_name_and_other_shapes_are_refused(folders):
    noise((16, 16), 9).save(folders / "source" / "dog" / "0.png")
    with pytest.raises(InvalidInput, match="dog/0"):
        pairs(folders)
    (folders / "source" / "dog" / "0.png").unlink()
    noise((40, 16), 9).save(folders / "source" / "dog" / "0.webp", lossless=True)
    with pytest.raises(InvalidInput, match="40 x 16 pixels, of another shape than its partner's 24 x 16"):
        pairs(folders)


def test_missing_folders_and_wrong_settings(folders):
    with pytest.raises(NotFound):
        Pairs(str(folders / "nowhere"), str(folders / "target"))
    with pytest.raises(InvalidInput, match="told"):
        pairs(folders, told="sound")
    with pytest.raises(InvalidInput, match="no partner"):
        Pairs(str(folders / "source" / "cat"), str(folders / "target" / "dog"), unmatched="leave")


def test_colour_to_grey_and_back(folders):
    item = pairs(folders, mode="L")[0]
    assert item.image.shape == (1, 16, 16)
    assert item.inputs["image"].shape == (3, 16, 16)
    assert pairs(folders, source_mode="L")[0].inputs["image"].shape == (1, 16, 16)


def test_maps_keep_their_numbers(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "depths").mkdir()
    (tmp_path / "target").mkdir()
    noise((32, 32), 1).save(tmp_path / "target" / "1.png")
    classes = Image.new("P", (64, 64), 7)
    classes.putpalette([9, 9, 9] * 256)
    classes.paste(200, (0, 0, 32, 64))
    classes.save(tmp_path / "maps" / "1.png")
    row = [40000] * 32 + [1000] * 32
    deep = Image.frombytes("I;16", (64, 64), b"".join(value.to_bytes(2, "little") for value in row) * 64)
    deep.save(tmp_path / "depths" / "1.png")
    kinds = Pairs(str(tmp_path / "maps"), str(tmp_path / "target"), 8, told="semantic_map", flip=True)
    depths = Pairs(str(tmp_path / "depths"), str(tmp_path / "target"), 8, told="depth")
    wanted = torch.full((8, 8), 7)
    wanted[:, :4] = 200
    seen = [kinds.load(0, seed).inputs["semantic_map"] for seed in range(8)]
    assert all(torch.equal(each, wanted) or torch.equal(each, wanted.flip(1)) for each in seen)
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 2
    depth = depths[0].inputs["depth"]
    assert depth.shape == (8, 8)
    assert depth[0, 0] == 40000
    assert depth[0, 7] == 1000


def test_a_damaged_source_is_replaced_by_the_next_pair(folders):
    for number in range(6, 30):
        noise((16, 16), number).save(folders / "target" / "dog" / f"{number}.png")
        noise((16, 16), number).save(folders / "source" / "dog" / f"{number}.png")
    path = folders / "source" / "dog" / "9.png"
    path.write_bytes(path.read_bytes()[:-300])
    data = pairs(folders)
    index = next(i for i, entry in enumerate(data.images.entries) if entry.name == "dog/9.png")
    assert torch.equal(data[index].image, data[index + 1].image)
    assert torch.equal(data[index].inputs["image"], data[index + 1].inputs["image"])
    assert [name for name, _ in data.bad] == ["dog/9.png"]


def test_description_and_fingerprint(folders):
    data = pairs(folders, flip=True)
    assert build("data", json.loads(json.dumps(describe(data)))).fingerprint() == data.fingerprint()
    before = {data.fingerprint(), pairs(folders).fingerprint(), pairs(folders, source_mode="L").fingerprint()}
    noise((24, 16), 50).save(folders / "source" / "dog" / "0.webp", quality=30)
    assert len({*before, pairs(folders, flip=True).fingerprint()}) == 4
