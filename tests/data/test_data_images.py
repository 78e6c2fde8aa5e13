import json
import random

import pytest
import torch
from PIL import Image

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.files import natural
from sfumato.data.images import Images
from sfumato.registry import build, describe


def paint(path, color=(10, 20, 30), size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def noise_picture(path, seed, size=(40, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    Image.frombytes("RGB", size, bytes(chance.randrange(256) for _ in range(3 * size[0] * size[1]))).save(
        path
    )


def names(data):
    return [entry.name for entry in data.entries]


def test_natural_order_labels_and_odd_names(tmp_path):
    for name in ("b/10.png", "b/2.png", "b/ü ñ 猫.png", "a/x y/1.PNG", "b/.hidden.png", ".git/1.png"):
        paint(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "b/no_ending", "JPEG")
    (tmp_path / "b/notes.md").write_text("not a picture")
    data = Images(str(tmp_path), size=8)
    assert names(data) == ["a/x y/1.PNG", "b/2.png", "b/10.png", "b/no_ending", "b/ü ñ 猫.png"]
    assert [item.inputs["label"] for item in data] == ["a/x y", "b", "b", "b", "b"]
    assert data.labels() == ["a/x y", "b"]
    assert data.bad == []
    assert natural("x9y") < natural("x10a")


def test_a_flat_folder_has_no_labels_and_no_captions(tmp_path):
    paint(tmp_path / "1.png")
    item = Images(str(tmp_path), size=8)[0]
    assert item.inputs == {"original_size": (12, 20), "crop": (0, 2), "size": (8, 8)}
    assert item.image.shape == (3, 8, 8)


def test_captions_of_every_kind(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/3.png", "a/4.png", "c.png", "é.png"):
        paint(tmp_path / name)
    (tmp_path / "a/1.txt").write_text("\ufeff a café \n", "utf-8")
    (tmp_path / "a/2.json").write_text(json.dumps({"text": "by json", "boxes": [[0, 0, 1, 1]]}))
    lines = [
        {"file_name": "1.png", "caption": "loses to the text file", "source": "camera"},
        {"file_name": "3.png", "text": "by line", "label": "own"},
    ]
    (tmp_path / "a/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    above = [{"file_name": "c.png", "caption": "above"}, {"file_name": "e\u0301.png", "caption": "composed"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, above)))
    data = Images(str(tmp_path), size=8)
    inputs = {entry.name: data[i].inputs for i, entry in enumerate(data.entries)}
    captions = {name: value["caption"] for name, value in inputs.items()}
    assert captions == {
        "a/1.png": "a café",
        "a/2.png": "by json",
        "a/3.png": "by line",
        "a/4.png": None,
        "c.png": "above",
        "é.png": "composed",
    }
    assert inputs["a/1.png"]["source"] == "camera"
    assert inputs["a/2.png"]["boxes"] == [[0, 0, 1, 1]]
    assert inputs["a/3.png"]["label"] == "own"
    assert inputs["c.png"]["label"] is None
    assert "caption" not in Images(str(tmp_path), size=8, caption="none")[0].inputs


def test_bad_pictures_are_listed_and_passed_over_up_to_five_in_a_hundred(tmp_path):
    for i in range(38):
        paint(tmp_path / f"{i}.png")
    (tmp_path / "38.png").write_bytes(b"")
    (tmp_path / "39.jpg").write_bytes(b"GIF89a, really")
    data = Images(str(tmp_path), size=8)
    assert len(data) == 38
    assert [name for name, _ in data.bad] == ["38.png", "39.jpg"]
    assert all("not a PNG" in reason for _, reason in data.bad)
    (tmp_path / "40.webp").write_bytes(b"RIFF....WEBP")
    with pytest.raises(InvalidInput, match="3 of 41 pictures are bad"):
        Images(str(tmp_path), size=8)


def test_a_picture_damaged_inside_is_replaced_by_the_next_and_listed_once(tmp_path):
    for i in range(30):
        noise_picture(tmp_path / f"{i}.png", i)
    path = tmp_path / "7.png"
    path.write_bytes(path.read_bytes()[:-900])
    data = Images(str(tmp_path), size=8)
    assert len(data) == 30
    assert data.bad == []
    assert torch.equal(data[7].image, data[8].image)
    assert torch.equal(data[7].image, data[8].image)
    assert [name for name, _ in data.bad] == ["7.png"]
    other = tmp_path / "20.png"
    other.write_bytes(other.read_bytes()[:-900])
    with pytest.raises(InvalidInput, match="2 of 30"):
        data[20]


def test_missing_captions_are_bad_where_they_are_required(tmp_path):
    for i in range(20):
        paint(tmp_path / f"{i}.png")
        if i != 3:
            (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    data = Images(str(tmp_path), size=8, caption="required")
    assert data.bad == [("3.png", "has no caption")]
    assert len(data) == 19


def test_bad_metadata_lines_are_listed(tmp_path):
    for i in range(60):
        paint(tmp_path / f"{i}.png", size=(4, 4))
    lines = [
        '{"file_name": "0.png", "caption": "a"}',
        "{broken",
        '{"file_name": "0.png", "caption": "b"}',
        "[1]",
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines[:3]))
    data = Images(str(tmp_path), size=4)
    assert [where for where, _ in data.bad] == ["metadata.jsonl line 2", "metadata.jsonl line 3"]
    assert data[0].inputs["caption"] == "a"


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(InvalidInput, match="holds no"):
        Images(str(tmp_path))
    with pytest.raises(NotFound):
        Images(str(tmp_path / "nowhere"))
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match="1 of 1"):
        Images(str(tmp_path))


@pytest.mark.parametrize("field", [{"mode": "CMYK"}, {"crop": "top"}, {"caption": "maybe"}, {"size": 0}])
def test_settings_that_cannot_be(tmp_path, field):
    paint(tmp_path / "1.png")
    with pytest.raises(InvalidInput, match="images"):
        Images(str(tmp_path), **field)


def test_modes_and_background(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "1.png")
    for mode, channels in (("RGB", 3), ("L", 1), ("RGBA", 4)):
        image = Images(str(tmp_path), size=8, mode=mode, background=(0, 0, 0))[0].image
        assert image.shape == (channels, 8, 8)
        assert image.dtype == torch.float32
        assert image[-1].eq(-1).all()


def test_augmentation_follows_index_and_seed_alone(tmp_path):
    for i in range(8):
        noise_picture(tmp_path / f"{i}.png", 0)
    make = lambda: Images(str(tmp_path), size=16, crop="random", flip=True)  # noqa: E731
    first, second = make(), make()
    pairs = [(i, seed) for i in range(8) for seed in range(25)]
    made = {pair: first.load(*pair) for pair in pairs}
    for pair in reversed(pairs):
        again = second.load(*pair)
        assert torch.equal(again.image, made[pair].image)
        assert again.inputs == made[pair].inputs
    crops = {item.inputs["crop"] for item in made.values()}
    assert {left for _, left in crops} >= set(range(9)), "crops reach every place (24 rows scale to 16)"
    assert {top for top, _ in crops} == {0}
    assert len({item.image.sum().item() for item in made.values()}) > 150
    assert torch.equal(first[3].image, first.load(3, 0).image)


def test_flip_mirrors_half(tmp_path):
    noise_picture(tmp_path / "1.png", 1)
    plain, flipping = Images(str(tmp_path), size=16), Images(str(tmp_path), size=16, flip=True)
    mirrored = 0
    for seed in range(200):
        image = flipping.load(0, seed).image
        mirrored += torch.equal(image, plain[0].image.flip(2))
        assert torch.equal(image, plain[0].image) or torch.equal(image, plain[0].image.flip(2))
    assert 70 < mirrored < 130


def test_center_crop_keeps_the_middle(tmp_path):
    picture = Image.new("RGB", (30, 10), (255, 0, 0))
    picture.paste((0, 0, 255), (10, 0, 20, 10))
    picture.save(tmp_path / "1.png")
    image = Images(str(tmp_path), size=10)[0].image
    assert image[2].eq(1).all()
    assert image[0].eq(-1).all()


def test_buckets_take_the_nearest_shape(tmp_path):
    for name, size in (("1.png", (64, 64)), ("2.png", (128, 64)), ("3.png", (60, 100)), ("4.png", (900, 10))):
        paint(tmp_path / name, size=size)
    data = Images(str(tmp_path), size=64, buckets=((64, 64), (48, 80), (80, 48)))
    assert [data.sizes[data.bucket_of(i)] for i in range(4)] == [(64, 64), (48, 80), (80, 48), (48, 80)]
    for i in range(4):
        assert data[i].image.shape[1:] == data.sizes[data.bucket_of(i)]


def test_derived_buckets(tmp_path):
    paint(tmp_path / "1.png", size=(100, 60))
    data = Images(str(tmp_path), size=64, buckets=True)
    assert (64, 64) in data.sizes
    for height, width in data.sizes:
        assert height % 8 == width % 8 == 0
        assert height * width <= 64 * 64
        assert max(height, width) <= 2 * min(height, width)
    assert {(w, h) for h, w in data.sizes if h * w > 3500} <= set(data.sizes) | {
        (w, h) for h, w in data.sizes
    }
    height, width = data.sizes[data.bucket_of(0)]
    assert abs(width / height - 100 / 60) < 0.25
    large = Images(str(tmp_path), size=512, buckets=True).sizes
    assert all(h % 64 == w % 64 == 0 for h, w in large)
    assert (512, 512) in large


def test_buckets_and_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "1.jpg", exif=exif)
    data = Images(str(tmp_path), size=64, buckets=((32, 64), (64, 32)))
    assert data[0].inputs["original_size"] == (100, 50)
    assert data[0].image.shape == (3, 64, 32)


def test_described_and_built_again(tmp_path):
    paint(tmp_path / "1.png")
    for settings in ({}, {"size": (16, 24), "buckets": ((8, 16), (16, 8)), "mode": "L"}, {"buckets": True}):
        data = Images(str(tmp_path), **settings)
        again = build("data", json.loads(json.dumps(describe(data))))
        assert again.sizes == data.sizes
        assert again.fingerprint() == data.fingerprint()


def test_fingerprint_changes_with_anything_that_matters_and_with_nothing_else(tmp_path):
    for folder in ("a", "b"):
        for i in range(3):
            noise_picture(tmp_path / folder / f"{i}.png", i)
    first = Images(str(tmp_path / "a"), size=16).fingerprint()
    assert first == Images(str(tmp_path / "b"), size=16).fingerprint(), "the place does not matter"
    changed = {first}
    for settings in (
        {"size": 8},
        {"mode": "L"},
        {"flip": True},
        {"crop": "random"},
        {"background": (0, 0, 0)},
    ):
        changed.add(Images(str(tmp_path / "a"), **({"size": 16} | settings)).fingerprint())
    (tmp_path / "a/1.txt").write_text("a caption")
    changed.add(Images(str(tmp_path / "a"), size=16).fingerprint())
    (tmp_path / "a/1.txt").unlink()
    noise_picture(tmp_path / "a/3.png", 3)
    changed.add(Images(str(tmp_path / "a"), size=16).fingerprint())
    (tmp_path / "a/3.png").unlink()
    (tmp_path / "a/2.png").rename(tmp_path / "a/two.png")
    changed.add(Images(str(tmp_path / "a"), size=16).fingerprint())
    assert len(changed) == 9


def test_a_mirrored_crop_is_told_as_the_mirror_shows_it(tmp_path):
    """Column numbers as colours: the cut begins at the column that `crop` says, as it is seen."""
    ramp = Image.frombytes("L", (64, 16), bytes(4 * (x % 64) for x in range(64)) * 16)
    ramp.convert("RGB").save(tmp_path / "1.png")
    data = Images(str(tmp_path), size=16, crop="random", flip=True)
    for seed in range(40):
        image, inputs = data.load(0, seed)
        columns = ((image[0, 0] + 1) * 127.5 / 4).round()
        mirrored = bool(columns[0] > columns[-1])
        left = 63 - columns[0] if mirrored else columns[0]
        assert abs(left - inputs["crop"][1]) <= 1
        assert (inputs["original_size"], inputs["size"]) == ((16, 64), (16, 16))


def test_boxes_beside_a_picture_are_mirrored_with_it_and_the_crop_is_told(tmp_path):
    picture = Image.new("RGB", (80, 20), (0, 0, 0))
    picture.paste((255, 255, 255), (20, 5, 30, 15))
    picture.save(tmp_path / "1.png")
    box = {"label": "square", "box": [20 / 80, 5 / 20, 10 / 80, 10 / 20]}
    (tmp_path / "1.json").write_text(json.dumps({"boxes": [box]}))
    data = Images(str(tmp_path), size=20, crop="random", flip=True)
    seen = set()
    for seed in range(60):
        image, inputs = data.load(0, seed)
        x0, y0, width, height = inputs["boxes_crop"]
        (thing,) = inputs["boxes"]
        assert (width, height, y0) == pytest.approx((0.25, 1, 0))
        # The box, moved into what is seen of the whole, is where the white square is.
        left, right = (80 * (thing["box"][0] + part - x0) for part in (0, thing["box"][2]))
        wanted = torch.zeros(20)
        wanted[max(round(left), 0) : max(round(right), 0)] = 1
        assert abs((image[0, 10] > 0).float() - wanted).sum() <= 2
        seen.add((thing["box"][0] > 0.5, bool(wanted.any())))
    assert len(seen) == 4
    assert json.loads((tmp_path / "1.json").read_text())["boxes"] == [box] == data.entries[0].inputs["boxes"]


def test_derived_buckets_align_with_what_a_model_takes(tmp_path):
    for name, size in (("1.png", (100, 60)), ("2.png", (64, 64)), ("3.png", (60, 100))):
        paint(tmp_path / name, size=size)
    data = Images(str(tmp_path), size=128, buckets=True)
    before = data.fingerprint()
    data.align(8)
    assert data.fingerprint() == before
    data.align(48)
    assert all(side % 48 == 0 for pair in data.sizes for side in pair)
    assert [data[i].image.shape[1:] for i in range(3)] == [data.sizes[data.bucket_of(i)] for i in range(3)]
    assert data.fingerprint() != before
    with pytest.raises(InvalidInput, match="divides by 256"):
        data.align(256)
    fixed = Images(str(tmp_path), size=128, buckets=((64, 96), (96, 64)))
    fixed.align(48)
    assert fixed.sizes == ((64, 96), (96, 64))
