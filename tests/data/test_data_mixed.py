import pytest
import torch

from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.images import Images
from sfumato.data.mixed import Mixed
from sfumato.data.scenes import Scenes
from sfumato.registry import build, describe
from sfumato.training.order import DataOrder


def parts() -> tuple[Emoji, Scenes]:
    return Emoji(size=16, split="held_out", flip=True), Scenes(count=5, size=16)


def test_every_item_is_that_of_its_own_set() -> None:
    emoji, scenes = parts()
    mixed = Mixed((emoji, scenes))
    assert len(mixed) == len(emoji) + 5
    for index, own in ((0, emoji.load(0, 3)), (len(emoji) - 1, emoji.load(len(emoji) - 1, 3))):
        assert torch.equal(mixed.load(index, 3).image, own.image)
    for place in range(5):
        item = mixed.load(len(emoji) + place, 3)
        assert torch.equal(item.image, scenes.load(place, 3).image)
        assert item.inputs["caption"] == scenes.load(place, 3).inputs["caption"]
    assert torch.equal(mixed[-1].image, scenes[4].image)
    with pytest.raises(IndexError):
        mixed[len(mixed)]


def test_a_description_makes_it_again_and_the_fingerprint_follows_the_sets() -> None:
    emoji, scenes = parts()
    mixed = Mixed((emoji, scenes))
    again = build("data", describe(mixed))
    assert again.fingerprint() == mixed.fingerprint()
    assert Mixed((scenes, emoji)).fingerprint() != mixed.fingerprint()
    assert Mixed((emoji, Scenes(count=6, size=16))).fingerprint() != mixed.fingerprint()
    assert mixed.labels("style") == ["noto", "fluent 3d"]


def test_batches_hold_pictures_of_one_size_though_sets_have_buckets(tmp_path) -> None:
    from PIL import Image

    for number, size in enumerate([(40, 20), (20, 40), (32, 32)] * 4):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
    wide = Images(str(tmp_path), size=32, buckets=True)
    mixed = Mixed((Emoji(size=32, split="held_out"), wide))
    order = DataOrder(len(mixed), 4, 0, mixed.bucket_of)
    for step in range(3 * len(mixed) // 4):
        assert len({mixed.load(i, 0).image.shape for i in order(step).indices}) == 1


def test_no_sets_are_refused() -> None:
    with pytest.raises(InvalidInput, match="one data set or more"):
        Mixed()


@pytest.mark.parametrize("repeats", [(1,), (1, 0), (2, 2, 2)])
def test_repeats_are_one_whole_number_a_part(repeats: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="give each 1 or more"):
        Mixed(parts(), repeats)
