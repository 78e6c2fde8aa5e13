"""A fresh control of a trained model: nothing at first, then it alone learns, and the hint is heeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.checkpoints import native
from sfumato.checkpoints.controlled import controlled
from sfumato.core.errors import InvalidInput
from sfumato.data.item import collate
from sfumato.model import Model
from sfumato.training import train
from sfumato.training.objectives.objective import told
from sfumato.training.progress import LossLog
from sfumato.training.run_file import Run

HINTED = {
    "name": "hinted",
    "data": {"name": "emoji", "size": 16, "categories": ["Food & Drink"]},
    "detector": {"name": "luminance"},
    "colors": 1,
}


def start(folder: Path) -> Path:
    torch.manual_seed(0)
    network = {"name": "sd_unet", "in_channels": 3, "out_channels": 3, "channels": 32, "multipliers": [1, 2]}
    model = Model.from_description(
        {
            "network": {**network, "blocks": 1, "attention": [2], "heads": 2, "tokens": 16},
            "process": "flow",
            "prediction": "data",
            "time_input": "thousand",
            "conditioner": "nothing",
            "space": {"name": "pixel", "multiple": 2},
        }
    )
    torch.nn.init.normal_(model.denoiser.network.out[-1].weight, std=0.05)
    native.save(model, folder / "start")
    return folder / "start"


def run(folder: Path, **more: Any) -> Run:
    settings = {
        "start": str(start(folder)),
        "controls": {"hint": "controlnet"},
        "data": HINTED,
        "batch": 16,
        "steps": 50,
        "optimizer": {"rate": 2e-3},
        "ema": [{"decay": 0.9}],
        "validation": {"every": 25, "items": 16, "bands": 2, "shuffled": ["hint"]},
        "card": {"size": [16, 16], "steps": 4},
    }
    return Run.from_dict({**settings, **more})


def test_a_fresh_control_changes_nothing_and_nothing_but_it_learns(tmp_path: Path) -> None:
    asked = run(tmp_path)
    data = asked.build_data()
    old, made = sfumato.load(asked.start), asked.build_model(data)
    batch = collate([data.load(i, 0) for i in range(3)])
    x, condition = batch.image, told(made, batch)
    assert condition.hints[0] is not None
    assert torch.allclose(condition.hints[0], (torch.stack(batch.inputs["hint"]) + 1) / 2)
    level = made.process(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).like(x)
    with torch.no_grad():
        assert torch.equal(made.denoiser(x, level, condition).x0, old.denoiser(x, level, told(old, batch)).x0)
    names = {name for name, _ in asked.build_objective().parameters(made)}
    assert names
    assert all(name.startswith("network.held.") for name in names)


def test_it_learns_to_heed_the_hint_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    asked = run(tmp_path)
    model = train(asked, tmp_path / "run")
    seen = [line["heeded"] for line in LossLog.read(tmp_path / "run") if "heeded" in line]
    assert seen[-1]["rise"] > max(4 * seen[-1]["error"], 0.1)
    assert 0 < seen[0]["growth"] < seen[-1]["growth"]
    network: Any = model.denoiser.network
    before = sfumato.load(asked.start).denoiser.network.state_dict()
    after = network.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    again = sfumato.load(tmp_path / "run")
    hint = collate([asked.build_data().load(0, 0)]).inputs["hint"][0]
    one, other = (sfumato.generate(again, seed=1, hint=each).tensor for each in (hint, -hint))
    assert torch.equal(sfumato.generate(again, seed=1, hint=hint).tensor, one)
    assert not torch.allclose(one, other, atol=1e-2)


def test_the_decoder_learns_with_it_where_that_is_said(tmp_path: Path) -> None:
    said = {"hint": {"name": "controlnet", "learns": "decoder", "middle": True}}
    asked = run(tmp_path, controls=said, steps=3, validation={"every": 0})
    model = train(asked, tmp_path / "run")
    network: Any = model.denoiser.network
    assert network.middle
    before, after = sfumato.load(asked.start).denoiser.network.state_dict(), network.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    decoder = {name for name in before if name.startswith(("output_blocks.", "out."))}
    # Without words nothing comes of the attention to them.
    assert moved == {name for name in decoder if ".attn2." not in name and ".norm2." not in name}
    again = sfumato.load(tmp_path / "run")
    held: Any = again.denoiser.network
    assert (held.learns, held.middle) == ("decoder", True)
    # Beside another network it would be without half of what learnt.
    with pytest.raises(InvalidInput, match="use the model that it is in"):
        controlled(sfumato.load(asked.start), again)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"hint": {"name": "controlnet", "learn": "decoder"}}, "unknown key 'learn'"),
        ({"hint": {"name": "controlnet", "learns": "encoder"}}, "'encoder' is none of"),
        ({"hint": {"name": "controlnet", "middle": True}, "more": "controlnet"}, "learn alike"),
        ({"boxes": {"name": "gligen", "learns": "decoder"}}, "beside boxes"),
    ],
)
def test_settings_of_controls_that_are_none_are_refused(said: Any, match: str, tmp_path: Path) -> None:
    asked = run(tmp_path, controls=said)
    with pytest.raises(InvalidInput, match=match):
        asked.build_model(asked.build_data())


def test_what_no_control_can_be_begun_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tell no hint"):
        (asked := run(tmp_path, controls={"edges": "controlnet"})).build_model(asked.build_data())
    with pytest.raises(InvalidInput, match="there already"):
        Run.from_dict({"controls": {"hint": "controlnet"}, "data": HINTED, "model": {"network": "adm"}})


def test_a_control_alone_is_not_trained() -> None:
    settings = {"model": {"control": {"name": "controlnet"}}, "data": HINTED, "objective": "denoising"}
    with pytest.raises(InvalidInput, match="with the model that it steers"):
        Run.from_dict(settings)
