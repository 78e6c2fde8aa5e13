"""A trained model told one thing more: at first as it was, then it learns to heed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import toy_model

import sfumato
from sfumato.checkpoints import native
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.data.emoji import Emoji
from sfumato.data.instructed import Instructed
from sfumato.data.item import collate
from sfumato.model import Model
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.objectives.objective import told
from sfumato.training.run_file import Run
from sfumato.training.widen import widened

NETWORK = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "heads": 2}


def start(conditioner: Any = "nothing") -> Model:
    torch.manual_seed(0)
    settings = {
        "network": {"name": "adm", "in_channels": 3, "out_channels": 3, **NETWORK, "classes": 2},
        "process": "flow",
        "prediction": "data",
        "time_input": "thousand",
        "conditioner": conditioner,
        "space": {"name": "pixel", "multiple": 8},
    }
    model = Model.from_description(settings)
    for parameter in model.denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


STYLES = {"name": "class_label", "labels": {"style": ["noto", "fluent 3d"]}}


@pytest.mark.parametrize("conditioner", ["nothing", STYLES])
@torch.no_grad()
def test_what_it_is_told_besides_changes_nothing_at_first(conditioner: Any) -> None:
    old = (
        start(conditioner)
        if conditioner != "nothing"
        else start({"name": "class_label", "labels": {"kind": ["skin", "style"]}})
    )
    data = Instructed(size=16, kinds=("skin",))
    made = widened(old, {"name": "image"}, data, {"name": "told"})
    assert made.denoiser.network.in_channels == 6
    assert made.card == {"name": "told"}
    batch = collate([data.load(i, 0) for i in (0, 7)])
    batch.inputs["style"] = ["noto", "fluent 3d"]
    condition = told(made, batch)
    level = made.process(torch.tensor([0.3, 0.8], dtype=torch.float64)).like(batch.image)
    was = old.denoiser(batch.image, level, told(old, batch)).x0
    assert torch.equal(made.denoiser(batch.image, level, condition).x0, was)
    weight = made.denoiser.network.input_blocks[0][0].weight
    assert not bool(weight[:, 3:].any())
    weight[:, 3:] += 0.1
    assert not torch.allclose(made.denoiser(batch.image, level, condition).x0, was)


def test_what_lays_nothing_beside_x_is_refused() -> None:
    with pytest.raises(InvalidInput, match="lays nothing beside x"):
        widened(start(), dict(STYLES), Emoji(size=16), {})


def test_a_run_is_told_besides_what_it_starts_with(tmp_path: Path) -> None:
    native.save(start(STYLES), tmp_path / "start")
    settings = {
        "start": str(tmp_path / "start"),
        "told": {"name": "image"},
        "data": {"name": "instructed", "size": 16, "kinds": ["style"]},
    }
    run = Run.from_dict(settings)
    model = run.build_model(run.build_data())
    assert set(model.conditioner.inputs) == {"style", "image", "size"}
    native.save(model, tmp_path / "made")
    again = sfumato.load(tmp_path / "made")
    own = model.denoiser.network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in again.denoiser.network.state_dict().items())
    with pytest.raises(InvalidInput, match="nothing of model"):
        Run.from_dict({**settings, "model": {"network": "adm", "process": "flow", "prediction": "data"}})


def test_each_of_picture_and_words_is_dropped_in_its_share() -> None:
    """Of 4,000 rows a tenth lose both, a fifth the picture alone, a fifth the words alone."""
    count = 4000
    model = toy_model()

    class Both(torch.nn.Module):
        inputs = ("kind",)

        def forward(self, count: int, **inputs: Any) -> Condition:
            return Condition(vector=torch.ones(count, 2), channels=torch.ones(count, 1, 1, 1))

        def null(self, condition: Condition) -> Condition:
            return Condition(vector=torch.zeros(count, 2), channels=torch.zeros(count, 1, 1, 1))

    model.conditioner = Both()
    condition = model.conditioner(count)
    objective = Denoising(drop=0.1, drop_each=0.2)
    kept = objective.dropped(model, condition, Noise(range(count)))
    assert kept.vector is not None
    assert kept.channels is not None
    words, picture = kept.vector[:, 0].bool(), kept.channels.flatten().bool()
    shares = [(~words & ~picture), (words & ~picture), (~words & picture), (words & picture)]
    for share, wanted in zip(shares, (0.1, 0.2, 0.2, 0.5), strict=True):
        assert share.float().mean().item() == pytest.approx(wanted, abs=0.03)
    with pytest.raises(InvalidInput, match="no picture beside x"):
        objective.dropped(toy_model(), toy_model().conditioner(8, kind=["left"] * 8), Noise(range(8)))
    with pytest.raises(InvalidInput, match="shares"):
        Denoising(drop=0.5, drop_each=0.3)
