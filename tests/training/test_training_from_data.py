"""A run file leaves names, vocabularies and sizes to its data, and the two are made for each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato.checkpoints import native
from sfumato.core.errors import InvalidInput
from sfumato.data.emoji import Emoji
from sfumato.data.item import collate
from sfumato.data.scenes import Scenes
from sfumato.model import Model
from sfumato.training import train
from sfumato.training.from_data import asks, filled
from sfumato.training.objectives.objective import told
from sfumato.training.progress import LossLog
from sfumato.training.run_file import Run

CONCEPTS = ("lemon", "owl", "kite", "cat")


def test_what_is_left_to_the_data() -> None:
    scenes = Scenes(5, 16, concepts=CONCEPTS, label="concept")
    parts = [
        {"name": "boxes", "names": {"from": "data"}, "width": 8},
        {"name": "box_map", "names": {"from": "data"}},
        {"name": "semantic_map", "classes": {"from": "data"}},
        {"name": "text_small", "encoder": {"name": "text_small", "tokenizer": {"from": "data"}}},
    ]
    settings = {"conditioner": {"name": "together", "parts": parts}, "space": {"autoencoder": {"from": "x"}}}
    assert asks(settings)
    found = filled(settings, scenes)
    boxes, drawn, classes, text = found["conditioner"]["parts"]
    assert sorted(boxes["names"]) == sorted(CONCEPTS)
    assert drawn["names"] == boxes["names"]
    assert classes["classes"] == len(scenes.labels("semantic_map")) == 1 + len(CONCEPTS)
    assert filled(parts[2], Scenes(5, 16))["classes"] == 6
    assert {"lemon", "left", "above", "the"} <= set(text["encoder"]["tokenizer"]["vocabulary"])
    assert not asks(found)
    assert found["space"] == settings["space"]
    emoji = Emoji(concepts=CONCEPTS)
    labels = {"name": "class_label", "labels": {"style": {"from": "data"}, "concept": ["lemon"]}}
    assert filled({"conditioner": labels}, emoji)["conditioner"]["labels"] == {
        "style": ["noto", "fluent 3d"],
        "concept": ["lemon"],
    }
    with pytest.raises(InvalidInput, match=r"the data say no mood .* model.conditioner.labels.mood|mood"):
        filled({"conditioner": {"name": "class_label", "labels": {"mood": {"from": "data"}}}}, emoji)


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    """A run in latents, told sizes, on pictures of several shapes."""
    network = {
        "name": "sd_unet",
        "in_channels": 2,
        "out_channels": 2,
        "channels": 32,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [],
        "heads": 1,
        "vector": 48,
    }
    run = {
        "model": {
            "network": network,
            "process": "flow",
            "prediction": "velocity",
            "time_input": "thousand",
            "conditioner": {"name": "sizes", "width": 8},
            "space": {"name": "latent", "autoencoder": {"from": str(folder / "autoencoder")}, "multiple": 6},
        },
        "data": {"name": "images", "root": str(folder / "pictures"), "size": 32, "buckets": True},
        "batch": 2,
        "steps": 6,
        "device": "cpu",
        "ema": [],
        "cache": True,
        "card": {"size": [24, 24], "steps": 2},
    }
    return run | changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("buckets")
    (place / "pictures").mkdir()
    for number in range(12):
        size = ((40, 40), (60, 30), (30, 60))[number % 3]
        Image.effect_noise(size, 50 + number).convert("RGB").save(place / "pictures" / f"{number}.png")
    torch.manual_seed(0)
    kl = {"name": "kl", "channels": 2, "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    model = Model.from_description({"autoencoder": kl})
    model.card["latent"] = {"scale": 1.0}
    native.save(model, place / "autoencoder")
    return place


def test_buckets_in_latents_are_of_sides_that_the_space_takes_and_the_run_resumes(
    folder: Path, tmp_path: Path
) -> None:
    """Factor 2 and multiple 6: sides divide by 12; a run stopped after 3 steps goes on to the same losses."""
    run = Run.from_dict(settings(folder))
    _, data, _ = run.build()
    sizes: Any = data.sizes  # type: ignore[attr-defined]
    assert (24, 36) in sizes
    assert all(side % 12 == 0 for pair in sizes for side in pair)
    train(run, tmp_path / "whole")
    train(Run.from_dict(settings(folder, steps=3)), tmp_path / "parts")
    train(run, tmp_path / "parts")
    whole, parts = (LossLog.read(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in parts]
    assert len(whole) == 6


def test_sizes_are_told_the_picture_the_cut_and_what_is_made(folder: Path) -> None:
    run = Run.from_dict(settings(folder))
    model, data, _ = run.build()
    wide = [index for index in range(len(data)) if data[index].inputs["original_size"] == (30, 60)][:2]
    batch = collate([data[index] for index in wide])
    crop = batch.inputs["crop"][0]
    assert batch.image.shape[2:] == (24, 36)
    wanted = model.conditioner(2, original_size=(30, 60), crop=crop, target_size=(24, 36), size=(24, 36))
    assert torch.equal(told(model, batch).vector, wanted.vector)  # type: ignore[arg-type]
    assert crop == (0, 6)


def test_a_size_that_the_space_does_not_take_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    data = {"name": "images", "root": str(folder / "pictures"), "size": 40}
    with pytest.raises(InvalidInput, match="40 x 40 is not a multiple of 12"):
        train(Run.from_dict(settings(folder, data=data)), tmp_path / "run")
