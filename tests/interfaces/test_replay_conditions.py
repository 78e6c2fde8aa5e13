"""Pictures told maps, layouts, sizes and pictures are made again byte for byte, or it is said why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import sfumato
from sfumato.checkpoints import native
from sfumato.checkpoints.load import load
from sfumato.conditioners.boxes import Boxes
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.depth import Depth
from sfumato.conditioners.image import Image as ImageConditioner
from sfumato.conditioners.masked_image import MaskedImage
from sfumato.conditioners.semantic_map import SemanticMap
from sfumato.conditioners.sizes import Sizes
from sfumato.conditioners.text_small import TextSmall
from sfumato.conditioners.together import Together
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.noise import Noise
from sfumato.core.prediction import Noise as NoisePrediction
from sfumato.editing.image_to_image import ImageToImage
from sfumato.encoders import text_small
from sfumato.encoders.word_piece import WordPiece
from sfumato.generation.images import to_image
from sfumato.generation.inputs import Record, hash_of, rows_of
from sfumato.interfaces.recipe import read_recipe, save_png
from sfumato.interfaces.replay import replay
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.betas import Betas
from sfumato.spaces.pixel import Pixel

LAYOUT = [{"label": "apple", "box": [0.1, 0.2, 0.5, 0.5]}, {"label": "cat", "box": [0.5, 0, 0.5, 1]}]
LABELS = ["apple", "cat"]


def text() -> TextSmall:
    return TextSmall(text_small.TextSmall(WordPiece.of(["a red cat, an apple"]), 32, 1, 2, 16, 12))


CONDITIONERS: dict[str, tuple[Callable[[], Any], int]] = {
    "layout": (lambda: Together((text(), Boxes(LABELS, 3, 64, 32, 1, 2, 16))), 0),
    "maps": (lambda: Together((text(), ClassLabel({"label": LABELS}), SemanticMap(4, 2), Depth())), 3),
    "hole": (
        lambda: Together((text(), Sizes((16, 16), 4), ClassLabel({"label": LABELS}), MaskedImage("pixel"))),
        4,
    ),
    "picture": (lambda: Together((text(), ImageConditioner())), 3),
}
"""What models are told, by name, and in how many channels."""


def picture(seed: int, height: int = 16, width: int = 16) -> Image.Image:
    return to_image(2 * Noise([seed]).uniform((1, 3, height, width), "picture")[0] - 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models in folders, by name."""
    root, folders = tmp_path_factory.mktemp("models"), {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (make, channels) in CONDITIONERS.items():
            conditioner = make().eval()
            vector = sum(part.shares.get("vector") or 0 for part in conditioner.parts)
            shape = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2}
            network = SDUNet(in_channels=3 + channels, out_channels=3, tokens=32, vector=vector, **shape)
            # As made, a network says nothing: layers that begin at zero hide what it is told.
            for weight in [each for each in network.parameters() if not each.any()]:
                nn.init.normal_(weight, std=0.1)
            denoiser = NetworkDenoiser(network, Betas(), NoisePrediction()).eval()
            card = {"size": [16, 16], "steps": 2, "guidance": [{"name": "classifier_free", "scale": 2.0}]}
            folders[name] = root / name
            native.save(Model(denoiser, conditioner, Pixel(multiple=2), card), folders[name])
    return folders


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A folder with a picture, a mask, a depth and a map of classes."""
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    Image.linear_gradient("L").resize((16, 16)).save(tmp_path / "depth.png")
    hole = Image.new("L", (16, 16))
    hole.paste(255, (3, 5, 12, 9))
    hole.save(tmp_path / "m.png")
    Image.frombytes("L", (16, 16), bytes(i // 64 for i in range(256))).save(tmp_path / "map.png")
    return tmp_path


def said(name: str, here: Path) -> dict[str, Any]:
    maps = {"semantic_map": str(here / "map.png"), "depth": here / "depth.png"}
    return {
        "layout": {"prompt": "a (red:1.3) cat", "boxes": LAYOUT, "boxes_crop": [0, 0, 1, 1]},
        "maps": {"prompt": "a cat", "label": "cat", **maps},
        "hole": {
            "prompt": "an apple",
            "label": "apple",
            "crop": (0, 4),
            "original_size": (20, 30),
            "image": str(here / "a.png"),
            "mask": str(here / "m.png"),
        },
        "picture": {"prompt": "a red cat", "image": str(here / "a.png")},
    }[name]


WALKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "negative": {"negative": {"prompt": "an apple"}},
    "several": {"count": 3, "batch": 2, "negative": {"prompt": ["cat", "red", None]}},
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("name", CONDITIONERS)
def test_what_was_told_is_told_again(name: str, walk: str, models: dict[str, Path], here: Path) -> None:
    made = sfumato.generate(load(models[name]), seed=4, **WALKS[walk], **said(name, here))
    for image, recipe in zip(made.images, made.recipes, strict=True):
        path = save_png(image, recipe, here / "out")
        assert "unrecorded" not in recipe
        result = replay(path)
        assert result.identical
        assert json.loads(json.dumps(recipe)) == read_recipe(path)


@pytest.mark.parametrize("name", CONDITIONERS)
def test_everything_told_is_heard(name: str, models: dict[str, Path], here: Path) -> None:
    """Else nothing above would tell a recipe that forgets."""
    model, told = load(models[name]), said(name, here)
    usual = sfumato.generate(model, seed=4, **told).tensor
    others: dict[str, Any] = {
        **{"prompt": "an apple", "boxes": LAYOUT[:1], "boxes_crop": [0.5, 0, 0.5, 1], "label": "cat"},
        **{"image": str(here / "b.png"), "mask": str(here / "b.png"), "depth": str(here / "a.png")},
        **{"semantic_map": torch.zeros(16, 16, dtype=torch.long), "crop": (9, 9), "original_size": (9, 9)},
    }
    others |= {"prompt": "red"} if name == "hole" else {}
    others["label"] = "apple" if told.get("label") == "cat" else "cat"
    for key in told:
        other = sfumato.generate(model, seed=4, **{**told, key: others[key]}).tensor
        assert (other - usual).abs().max() > 1e-4, key


def test_each_row_has_its_own(models: dict[str, Path], here: Path) -> None:
    """Lists of layouts, of pairs and of pictures, of which some say nothing."""
    model = load(models["layout"])
    rows = {"prompt": ["cat", None], "boxes": [LAYOUT, []], "boxes_crop": [None, [0, 0, 0.5, 0.5]]}
    two = sfumato.generate(model, seeds=[3, 9], **rows)
    assert two.recipes[0]["inputs"] == {"prompt": "cat", "boxes": LAYOUT, "boxes_crop": None}
    assert two.recipes[1]["inputs"] == {"prompt": None, "boxes": [], "boxes_crop": [0, 0, 0.5, 0.5]}
    for row in range(2):
        told = {name: values[row] for name, values in rows.items()}
        alone = sfumato.generate(model, seed=[3, 9][row], **told)
        torch.testing.assert_close(alone.tensor[0], two.tensor[row], rtol=0, atol=1e-3)
        assert replay(save_png(two.images[row], two.recipes[row], here / "out")).identical


def test_a_picture_that_is_another_now_or_elsewhere(models: dict[str, Path], here: Path) -> None:
    made = sfumato.generate(load(models["picture"]), seed=4, **said("picture", here))
    path = save_png(made.images[0], made.recipe, here / "out")
    assert made.recipe["pictures"] == {str(here / "a.png"): hash_of(here / "a.png")}
    shutil.move(here / "a.png", here / "moved.png")
    with pytest.raises(NotFound, match=r"made from .*a\.png, which is not there \(give the file it was"):
        replay(path)
    assert replay(path, given=[here / "b.png", here / "moved.png"]).identical
    shutil.copy(here / "b.png", here / "a.png")
    with pytest.raises(InvalidInput, match="another picture now"):
        replay(path)
    assert replay(path, given=[here / "moved.png"]).identical
    # The bytes of the file are the same content.
    assert replay(path, given=[(here / "moved.png").read_bytes()]).identical


def test_a_prompt_that_is_called_like_the_picture_stays_a_prompt(
    models: dict[str, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    made = sfumato.generate(load(models["picture"]), seed=4, prompt="a.png", image="a.png")
    path = save_png(made.images[0], made.recipe, here / "out")
    shutil.move("a.png", "c.png")
    assert replay(path, given=["c.png"]).identical


def test_images_and_tensors_are_known_by_their_hash(models: dict[str, Path], here: Path) -> None:
    model, tensor = load(models["maps"]), torch.arange(256).view(16, 16) // 64
    with Image.open(here / "depth.png") as depth:
        depth.load()
    told = {"prompt": "a cat", "semantic_map": tensor, "depth": depth}
    made = sfumato.generate(model, seeds=[4, 5], **told)
    assert made.recipes[0]["unrecorded"] == ["semantic_map", "depth"]
    assert made.recipes[0]["inputs"]["semantic_map"] == {"sha256": hash_of(tensor)}
    path = save_png(made.images[1], made.recipes[1], here / "out")
    with pytest.raises(InvalidInput, match=r"cannot hold: semantic_map, depth \(from Python, give them"):
        replay(path)
    with pytest.raises(InvalidInput, match="cannot hold: semantic_map "):
        replay(path, given=[depth, tensor + 0.0])
    assert replay(path, given=[depth, tensor.clone()]).identical


def test_a_negative_that_no_recipe_holds_is_told(models: dict[str, Path], here: Path) -> None:
    told, other = said("picture", here), picture(7)
    made = sfumato.generate(load(models["picture"]), seed=4, **told, negative={"image": other})
    assert made.recipe["unrecorded"] == ["image"]
    path = save_png(made.images[0], made.recipe, here / "out")
    with pytest.raises(InvalidInput, match="cannot hold: image"):
        replay(path)
    assert replay(path, given=[other]).identical


def test_edits_beside_maps_and_of_images(models: dict[str, Path], here: Path) -> None:
    """The edit's picture of an odd size is continued, and the maps beside it alike."""
    model = load(models["maps"])
    odd = picture(5, 15, 13)
    told = {**said("maps", here), "semantic_map": torch.ones(15, 13, dtype=torch.long)}
    told["depth"] = torch.arange(195.0).view(15, 13)
    made = sfumato.generate(model, seed=4, edit=ImageToImage(odd, 1.0), **told)
    assert made.images[0].size == (13, 15)
    path = save_png(made.images[0], made.recipe, here / "out")
    assert replay(path, given=[odd, told["semantic_map"], told["depth"]]).identical
    with pytest.raises(InvalidInput, match=r"cannot hold: edit\.image"):
        replay(path, given=[told["semantic_map"], told["depth"]])


def test_the_hash_is_of_what_was_read(models: dict[str, Path], here: Path) -> None:
    """A file that is written to during the walk is recorded as it was when the walk began."""

    def overwrite(event: Any) -> None:
        shutil.copy(here / "b.png", here / "a.png")

    before = hash_of(here / "a.png")
    made = sfumato.generate(load(models["picture"]), seed=4, observe=overwrite, **said("picture", here))
    assert list(made.recipe["pictures"].values()) == [before]


def test_rows_and_what_is_one_value() -> None:
    assert rows_of({"size": (3, 4), "text": ["a", "b"]}, 2, ("size",)) == {
        "size": [(3, 4)] * 2,
        "text": ["a", "b"],
    }
    assert rows_of({"size": [[3, 4], None]}, 2, ("size",)) == {"size": [[3, 4], None]}
    assert rows_of({"boxes": []}, 2, ("boxes",)) == {"boxes": [[], []]}
    assert rows_of({"level": [3, 4], "none": None}, 2) == {"level": [3, 4]}
    with pytest.raises(InvalidInput, match="text: 0 values for 2"):
        rows_of({"text": []}, 2)


def test_hashes_tell_contents_apart_and_nothing_else(here: Path) -> None:
    tensor = torch.arange(6.0)
    assert hash_of(tensor) == hash_of(tensor.clone()) == hash_of(tensor.expand(2, 6)[1])
    different = [tensor, tensor.view(2, 3), tensor.double(), tensor + 1, picture(1), picture(2)]
    different += [picture(1).convert("L"), (here / "a.png").read_bytes()]
    assert len({hash_of(each) for each in different}) == len(different)
    assert hash_of(str(here / "a.png")) == hash_of((here / "a.png").read_bytes())
    record = Record.of({"x": [object(), 1], "y": [{"a": tensor}, None]}, ())
    assert record.lost == ("x", "y")
    assert record.rows["x"] == [{"sha256": None}, 1]
    with pytest.raises(NotFound, match=r"image: .*nowhere\.png: No such file"):
        Record.of({"image": ["nowhere.png"]}, ("image",))
