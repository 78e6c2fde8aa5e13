"""Whether an input is heeded: nothing for a model that does not listen, beyond chance for one that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_toys import LABELS, Blobs, Points, Toy

from sfumato.conditioners.class_label import ClassLabel
from sfumato.control.controlnet import ControlNet
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.prediction import Data
from sfumato.data.item import Batch, Item
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.vp import VP
from sfumato.training.ema import Average
from sfumato.training.heeding import Heeding, first_heeded, growth_of, handed_on, heeding
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.progress import LossLog
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.trainer import Trainer
from sfumato.training.validation import Validation


class Named(Blobs):
    """Blobs as items, of which the label says on which side a point is."""

    def load(self, index: int, seed: int) -> Item:
        item = super().load(index, seed)
        return Item(item.image, item.inputs)

    def collate(self, items: list[Item]) -> Batch:
        inputs = {"kind": [item.inputs["kind"] for item in items]}
        return Batch(torch.stack([item.image for item in items]), inputs)


def model_of(classes: int = 2) -> Model:
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(Toy(classes=classes), VP(), Data(), "time")
    return Model(denoiser, ClassLabel(LABELS), Points())


def run(folder: Path, classes: int, shuffled: str = "kind") -> list[dict[str, object]]:
    settings = Settings(
        batch=32,
        steps=300,
        optimizer=AdamW(3e-3),
        ema=(Average(0.9),),
        saving=Saving(minutes=None),
        validation=Validating(every=100, items=32, bands=3, shuffled=(shuffled,)),
    )
    Trainer(model_of(classes), Named(weight=0.5), Denoising(drop=0), settings, folder).train()
    return LossLog.read(folder)


def test_what_nobody_is_told_cannot_be_heeded(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no item has an input 'kinds'.*did you mean kind"):
        run(tmp_path, classes=2, shuffled="kinds")


def test_what_is_learnt_to_be_heeded_is_told_and_from_which_step(tmp_path: Path) -> None:
    lines = run(tmp_path, classes=2)
    told = [line["heeded"] for line in lines if "heeded" in line]
    assert len(told) == 3
    assert told[-1]["inputs"] == ["kind"]
    assert told[-1]["rise"] > max(4 * told[-1]["error"], 0.2)
    # Where there is next to no signal all is known from the label alone.
    assert told[-1]["gaps"][2] > told[-1]["gaps"][0]
    first = first_heeded(lines)
    card = json.loads((tmp_path / "model" / "model.json").read_text())["card"]
    assert (
        card["training"]["heeded from step"]
        == first
        == next(
            line["step"]
            for line in lines
            if "heeded" in line and line["heeded"]["rise"] > 4 * line["heeded"]["error"]
        )
    )


def test_a_network_that_reads_no_label_is_found_out(tmp_path: Path) -> None:
    lines = run(tmp_path, classes=0)
    assert [line["heeded"]["rise"] for line in lines if "heeded" in line] == [0.0] * 3
    assert first_heeded(lines) is None


def test_each_item_is_told_the_next_ones_and_keeps_all_else() -> None:
    items = [Item(torch.full((2,), float(i)), {"kind": f"k{i}", "other": i}) for i in range(3)]
    moved = handed_on(Validation(items, [5, 6, 7], lambda each: each, bands=2), ["kind"])
    assert [item.inputs for item in moved.items] == [
        {"kind": "k1", "other": 0},
        {"kind": "k2", "other": 1},
        {"kind": "k0", "other": 2},
    ]
    assert all(torch.equal(a.image, b.image) for a, b in zip(items, moved.items, strict=True))
    assert moved.seeds == [5, 6, 7]


def test_the_rise_is_of_each_bands_own_loss() -> None:
    right = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    wrong = right + torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    found = heeding(("hint",), right, wrong, torch.nn.Identity())
    assert found.gaps == pytest.approx((1.0, 0.1))  # (1 + 3) / 2 of 2; 2 of 20
    assert found.rise == pytest.approx(0.55)
    each = torch.tensor([0.5 / 2 + 0.1 / 2, 1.5 / 2 + 0.1 / 2])
    assert found.error == pytest.approx(float(each.std()) / 2**0.5)
    assert found.growth is None
    assert "with another's hint the loss is +55.0%" in str(found)


def test_heeded_once_and_lost_again_does_not_count() -> None:
    def line(step: int, rise: float) -> dict[str, object]:
        return {"step": step, "heeded": {"rise": rise, "error": 0.01}}

    assert first_heeded([line(1, 0.0), line(2, 0.1), line(3, 0.0), line(4, 0.1), line(5, 0.2)]) == 4
    assert first_heeded([line(1, 0.03), {"step": 2, "loss": 1.0}]) is None
    assert Heeding(("a",), (), 0.041, 0.01).heeded
    assert not Heeding(("a",), (), 0.039, 0.01).heeded


def test_growth_is_that_of_the_weights_that_began_at_zero() -> None:
    network = SDUNet(channels=32, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, tokens=8)
    control = ControlNet.of(network, factor=2)
    assert control.growth == 0.0
    assert growth_of(network) is None
    for part in [*control.zero_convs, control.middle_block_out]:
        torch.nn.init.constant_(part[0].weight, 0.5)
    torch.nn.init.constant_(control.input_hint_block[-1].weight, 0.5)
    assert growth_of(torch.nn.ModuleList([network, control])) == pytest.approx(0.5)
