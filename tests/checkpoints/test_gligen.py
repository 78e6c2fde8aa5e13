"""GLIGEN's released files: the control in them is the one that was written, whatever else they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sfumato
from sfumato.checkpoints import gligen, native
from sfumato.checkpoints.prompted import grounded
from sfumato.control.gligen import Gligen, places_of
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet

BOXES = [{"label": "a cat", "box": [0.1, 0.5, 0.4, 0.4]}]


@pytest.fixture
def base(text_unet: Callable[..., Model]) -> Callable[[], Model]:
    """Makes a network with as many heads as published ones."""
    return lambda: text_unet(blocks=2, heads=8)


def control(model: Model) -> Gligen:
    made = Gligen.of(model.denoiser.network, 16, 16, share=0.3).eval()
    for number, weight in enumerate(made.parameters()):
        torch.nn.init.normal_(weight, 0.1, 0.2, generator=torch.Generator().manual_seed(number))
    return made


def theirs(model: Model, made: Gligen) -> dict[str, Tensor]:
    """The control under CompVis's names."""
    names = [name for name, _ in places_of(model.denoiser.network)]
    found = {}
    for name, tensor in made.state_dict().items():
        part, number, inner = [*name.split(".", 2), ""][:3]
        found[f"{names[int(number)]}.fuser.{inner}" if part == "fusers" else name] = tensor
    return found


def picture(model: Model) -> Tensor:
    return sfumato.generate(model, prompt="a cat", boxes=BOXES, steps=4, seed=1, size=16).tensor


@pytest.mark.parametrize("form", ["pruned", "whole"])
def test_it_draws_as_the_control_that_was_written(
    form: str, base: Callable[[], Model], tmp_path: Path
) -> None:
    model = base()
    made = control(model)
    expected = picture(grounded(base(), made))
    file = tmp_path / ("boxes.safetensors" if form == "pruned" else "boxes.bin")
    if form == "pruned":
        save_file(theirs(model, made), file)
    else:
        whole: dict[str, Any] = {"model": {**model.denoiser.network.state_dict(), **theirs(model, made)}}
        whole |= {
            "autoencoder": {"encoder.conv_in.bias": torch.zeros(3)},
            "config_dict": {"name": "grounded"},
        }
        torch.save(whole, file)
    native.save(model, tmp_path / "base")
    joined = sfumato.load(f"{tmp_path / 'base'} +boxes={file}", dtype=torch.float32)
    assert torch.equal(picture(joined), expected)
    alone = gligen.report(file)
    assert bool(alone.notes) == (form == "whole")
    assert not torch.equal(picture(grounded(base(), sfumato.load(file, heads=4))), expected)
    assert not torch.equal(picture(grounded(base(), Gligen.of(model.denoiser.network, 16, 16))), expected)


def test_the_names_of_stable_diffusion() -> None:
    """Sixteen blocks in the order that data pass them, which is not that of the alphabet."""
    with torch.device("meta"):
        network = SDUNet(
            channels=320, multipliers=(1, 2, 4, 4), blocks=2, attention=(1, 2, 4), heads=8, tokens=768
        )
        made = Gligen.of(network)
    names = gligen._names({f"{name}.fuser.alpha_attn": None for name, _ in places_of(network)})
    assert list(names) == [
        f"{place}.transformer_blocks.0.fuser.alpha_attn"
        for place in (
            *("input_blocks.1.1", "input_blocks.2.1", "input_blocks.4.1", "input_blocks.5.1"),
            *("input_blocks.7.1", "input_blocks.8.1", "middle_block.1"),
            *(f"output_blocks.{number}.1" for number in range(3, 12)),
        )
    ]
    assert list(names.values()) == [f"fusers.{number}.alpha_attn" for number in range(16)]
    shuffled = {name: None for name in sorted(names, reverse=True)}
    assert gligen._names(shuffled) == names
    assert made.widths == (320, 320, 640, 640, 1280, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3)


def test_what_is_damaged_is_refused(base: Callable[[], Model], tmp_path: Path) -> None:
    model = base()
    weights = theirs(model, control(model))
    lost = next(name for name in weights if name.endswith("fuser.attn.to_q.weight"))
    save_file(
        {name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "less.safetensors"
    )
    with pytest.raises(KeyMismatch, match="to_q"):
        sfumato.load(tmp_path / "less.safetensors")
    save_file({n: t for n, t in weights.items() if "fuser" not in n}, tmp_path / "none.safetensors")
    with pytest.raises(InvalidInput, match="no gated attention"):
        sfumato.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "less.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointCorrupt):
        gligen.read(tmp_path / "cut.safetensors")
