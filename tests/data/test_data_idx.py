import contextlib
import gzip
import random
import struct

import pytest
import torch

from sfumato.core.errors import InvalidInput, NotFound
from sfumato.data.idx import Idx, read_idx


def idx_bytes(values: torch.Tensor) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return head + bytes(values.flatten().tolist())


def write_set(folder, count=12, zipped=False, part="train"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count, dtype=torch.uint8) % 10
    for name, values, n in (("images", images, 3), ("labels", labels, 1)):
        data = idx_bytes(values)
        path = folder / f"{part}-{name}-idx{n}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)
    return images, labels


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("split, part", [("train", "train"), ("test", "t10k")])
def test_round_trip(tmp_path, zipped, split, part):
    images, labels = write_set(tmp_path, zipped=zipped, part=part)
    data = Idx(str(tmp_path), split=split)
    assert len(data) == 12
    for i in range(12):
        image, inputs = data[i]
        assert image.dtype == torch.float32
        assert torch.equal(((image + 1) * 127.5).round().byte()[0], images[i])
        assert inputs == {"label": data.classes[labels[i]]}
    assert data.labels()[9] == "ankle boot"


def test_padding_surrounds_evenly_with_the_darkest_value(tmp_path):
    write_set(tmp_path)
    plain, padded = Idx(str(tmp_path)), Idx(str(tmp_path), size=32)
    image = padded[3].image
    assert image.shape == (1, 32, 32)
    assert torch.equal(image[:, 2:-2, 2:-2], plain[3].image)
    image[:, 2:-2, 2:-2] = -1
    assert image.eq(-1).all()


def test_flip_follows_the_seed(tmp_path):
    write_set(tmp_path)
    data, plain = Idx(str(tmp_path), flip=True), Idx(str(tmp_path))
    flipped = [
        not torch.equal(data.load(i, seed).image, plain[i].image) for i in range(12) for seed in range(20)
    ]
    assert 80 < sum(flipped) < 160
    assert torch.equal(data.load(5, 7).image, Idx(str(tmp_path), flip=True).load(5, 7).image)
    i = flipped.index(True)
    assert torch.equal(data.load(i // 20, i % 20).image.flip(2), plain[i // 20].image)


def test_empty_classes_are_numbers(tmp_path):
    write_set(tmp_path)
    assert Idx(str(tmp_path), classes=())[3].inputs == {"label": "3"}
    with pytest.raises(InvalidInput, match="class 9"):
        Idx(str(tmp_path), classes=("a", "b"))


def test_fingerprint_sees_settings_and_content_but_not_the_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_set(tmp_path / name)
    one = Idx(str(tmp_path / "a")).fingerprint()
    assert one == Idx(str(tmp_path / "b")).fingerprint()
    assert one != Idx(str(tmp_path / "a"), size=32).fingerprint()
    path = tmp_path / "a/train-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert one != Idx(str(tmp_path / "a")).fingerprint()


def test_missing_files_say_what_to_install(tmp_path):
    with pytest.raises(NotFound, match="dataset-fashion-mnist"):
        Idx(str(tmp_path))


def test_mismatching_files_are_refused(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(torch.zeros(11, dtype=torch.uint8)))
    with pytest.raises(InvalidInput, match="do not belong together"):
        Idx(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\1\0\0\0\0",
        b"\1\0\x08\x01\0\0\0\1\0",
        b"\0\0\x08\x03\0\0\0\1",
        b"\0\0\x08\x01\0\0\0\2\0",
        b"\0\0\x08\x01\0\0\0\1\0\0",
        b"\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\x08\xff" + b"\0" * 40,
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_corrupt_files_are_refused(tmp_path, data, zipped):
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(InvalidInput):
        read_idx(path)


def test_mutated_gzip_never_crashes(tmp_path):
    chance = random.Random(0)
    whole = gzip.compress(idx_bytes(torch.arange(60, dtype=torch.uint8).view(3, 4, 5)))
    path = tmp_path / "x.gz"
    for trial in range(300):
        mutant = bytearray(whole)
        mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        path.write_bytes(mutant[: chance.randrange(len(mutant))] if trial % 2 else mutant)
        with contextlib.suppress(InvalidInput):
            assert read_idx(path).dtype == torch.uint8
