"""A picture made again from its recipe has the same bytes, alone or from a batch; what changed is said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import sfumato
from sfumato.checkpoints import native
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.interfaces.recipe import encode, read_recipe, read_texts, save_png, texts_of
from sfumato.interfaces.replay import replay
from sfumato.model import Model


@pytest.fixture
def saved(tiny: Model, tmp_path: Path) -> Path:
    native.save(tiny, tmp_path / "model")
    return tmp_path / "model"


def _pictures(folder: Path, out: Path, **settings: object) -> list[Path]:
    images = sfumato.generate(load(folder), **{"seed": 5, "concept": "cat", "style": "noto", **settings})
    return [save_png(i, r, out) for i, r in zip(images.images, images.recipes, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"count": 4, "concept": ["cat", "lemon", None, "red apple"]},
        {"count": 5, "batch": 2, "sampler": {"name": "ddim", "eta": 1.0}, "times": "uniform"},
        {"negative": {"concept": "lemon"}, "guidance": 7.25, "path": "cosine"},
        {"guidance": [{"name": "interval", "low": 0.1, "guidance": {"name": "rescale", "scale": 4.0}}]},
        {"size": (24, 16), "steps": 3, "seed": 2**63 - 1, "sampler": "unipc"},
        {"style": None},
    ],
)
def test_replay_gives_the_same_bytes(saved: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    for path in _pictures(saved, tmp_path / "out", **settings):
        result = replay(path)
        assert result.identical
        assert result.data == path.read_bytes()
        assert result.changed == ()
        assert result.pixels_differ == 0


def test_a_recipe_holds_all_there_is_to_know(saved: Path, tmp_path: Path) -> None:
    (path,) = _pictures(saved, tmp_path / "out")
    recipe = read_recipe(path)
    assert recipe["model"]["hash"] == native.hash_of(saved / "model.safetensors")
    assert recipe["seed"] == 5
    assert recipe["inputs"] == {"concept": "cat", "style": "noto"}
    for key in ("sfumato", "sampler", "times", "steps", "guidance", "size", "precision", "device", "threads"):
        assert key in recipe
    assert set(recipe["versions"]) == {"torch", "python"}
    assert read_texts(path)["parameters"].startswith("cat, noto\nSteps: 6, Sampler: DPM++ 2M, ")


def test_threads_are_restored(saved: Path, tmp_path: Path) -> None:
    (path,) = _pictures(saved, tmp_path / "out")
    before = torch.get_num_threads()
    recipe = {**read_recipe(path), "threads": before + 1}
    path.write_bytes(encode(Image.open(path), texts_of(recipe)))
    replay(path)
    assert torch.get_num_threads() == before


def test_other_weights_are_refused(saved: Path, tiny: Model, tmp_path: Path) -> None:
    (path,) = _pictures(saved, tmp_path / "out")
    with torch.no_grad():
        tiny.denoiser.network.leave.bias += 1
    native.save(tiny, tmp_path / "other")
    with pytest.raises(InvalidInput, match=r"made with weights \w{12}…, but .*other holds \w{12}…"):
        replay(path, tmp_path / "other")
    saved.rename(tmp_path / "moved")
    with pytest.raises(NotFound):
        replay(path)
    assert replay(path, tmp_path / "moved").identical


def test_a_picture_that_was_changed_is_told(saved: Path, tmp_path: Path) -> None:
    (path,) = _pictures(saved, tmp_path / "out")
    whole = Image.open(path)
    whole.load()
    texts = read_texts(path)
    edited = whole.copy()
    edited.putpixel((0, 0), tuple(255 - v for v in whole.getpixel((0, 0))))
    path.write_bytes(encode(edited, texts))
    result = replay(path)
    assert not result.identical
    assert result.pixels_differ == pytest.approx(3 / (16 * 16 * 3))
    packed = io.BytesIO()
    whole.save(packed, "PNG", compress_level=0, pnginfo=None)
    path.write_bytes(packed.getvalue())
    with pytest.raises(NotFound, match="no recipe"):
        replay(path)


def test_damaged_recipes_are_typed(saved: Path, tmp_path: Path) -> None:
    (path,) = _pictures(saved, tmp_path / "out", count=1)
    recipe = read_recipe(path)
    image = Image.open(path)
    image.load()
    for change in (
        {"seed": "x"},
        {"seed": None},
        {"steps": -1},
        {"sampler": {"name": "os.system"}},
        {"size": [0, 0]},
        {"inputs": []},
        {"model": 3},
        {"model": {}},
        {"batch": {"row": 9, "seeds": [1], "inputs": {}}},
        {"batch": {"row": 0, "seeds": [], "inputs": {}}},
        {"batch": 7},
        {"unrecorded": ["depth"]},
        {"guidance": 1e9},
        {"versions": 5, "size": "x"},
    ):
        path.write_bytes(encode(image, {"sfumato": json.dumps({**recipe, **change})}))
        with pytest.raises((InvalidInput, NotFound)):
            replay(path)
