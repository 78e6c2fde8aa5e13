"""The run files people copy: each reads, builds, and learns from its own data in a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.checkpoints import native
from sfumato.core.noise import Noise
from sfumato.core.space import Space
from sfumato.data.emoji import Emoji
from sfumato.data.item import collate
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.training.run_file import Run, read
from sfumato.training.trained_parts import named

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "src" / "sfumato" / "interfaces" / "demo.yaml"]
ABSENT = {"train_folder": "data={name: emoji, size: 64}"}
"""What stands in for data that the reader of the file is to have."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of autoencoders of the examples' shapes and an encoder of texts, small and fresh."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for example, name in (("train_autoencoder", "autoencoder"), ("train_emoji_autoencoder", "ae")):
        settings = read(ROOT / "examples" / f"{example}.yaml").model["autoencoder"]
        model = Model.from_description({"autoencoder": {**settings, "width": 8, "groups": 4}})
        model.card["latent"] = {"scale": 1.0}
        native.save(model, folder / name)
    small = {"name": "text_small", "width": 160, "depth": 1, "heads": 2, "dim_head": 16}
    words = describe(WordPiece.of(Emoji(wording="varied").labels("caption")))
    native.save(Model.from_description({"encoder": {**small, "tokenizer": words}}), folder / "words")
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_file_makes_a_model_that_learns_from_its_data(path: Path, parts: Path) -> None:
    changes = [
        f"model.{'.'.join(map(str, place))}.from={parts / Path(folder).name}"
        for place, folder in named(read(path).model)
    ]
    run = read(path, [*changes, *([ABSENT[path.stem]] if path.stem in ABSENT else [])])
    if run.data["name"] == "idx" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    data = run.build_data()
    model, objective = run.build_model(data), run.build_objective()
    assert list(data[0].image.shape[1:]) == run.card["size"]
    # Of two pictures and two texts there is little to learn which belong together.
    count = 8 if path.stem == "train_judge" else 2
    batch = collate([data.load(index * 37 % len(data), index) for index in range(count)])
    trained = list(objective.parameters(model))
    # What is trained already is not to be shaken.
    rate = 2e-3 if run.start is None else 1e-4
    optimizer = torch.optim.Adam([parameter for _, parameter in trained], rate)
    torch.manual_seed(0)
    losses = []
    for _ in range(3):
        loss = objective.loss(model, batch, Noise(range(1, count + 1))).value.mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    # The network's last layer starts at zero, so that others are moved from the second step on.
    told = [name for name, _ in trained if name.startswith("conditioner.") and "logits" not in name]
    still = [
        name for name, p in trained if name in told and (p.grad is None or not bool((p.grad != 0).any()))
    ]
    assert not told or len(still) < len(told)
    assert_heeded(run, model, batch.inputs)


def assert_heeded(run: Run, model: Model, inputs: dict[str, list[object]]) -> None:
    """Each input of the conditioner comes with the data, but for what a user alone says."""
    optional = {"prompt", "boxes_crop", "size", "original_size", "crop"}
    assert set(model.conditioner.inputs) - optional <= set(inputs), run.card["name"]
    space: Space = model.space
    assert run.card["size"][0] % space.step == 0
