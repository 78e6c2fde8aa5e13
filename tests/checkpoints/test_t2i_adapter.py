"""T2I-Adapters' files: the released layout, diffusers' folders and files, and a model joined with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import drawn, normal, randomised
from published_parts import shapes_of, write_hollow
from safetensors.torch import save_file

import sfumato
from sfumato.checkpoints import t2i_adapter
from sfumato.checkpoints.controlled import controlled
from sfumato.checkpoints.load import format_of
from sfumato.control.t2i_adapter import PUBLISHED, T2IAdapter
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, KeyMismatch, NotFound
from sfumato.core.prediction import Velocity
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.registry import build, describe
from sfumato.spaces.pixel import Pixel

KINDS: dict[str, dict[str, Any]] = {
    "full_adapter": {"channels": [32, 64, 64, 64], "num_res_blocks": 2, "downscale_factor": 8},
    "light_adapter": {"channels": [32, 64], "num_res_blocks": 3, "downscale_factor": 8},
    "full_adapter_xl": {"channels": [32, 64, 96, 96], "num_res_blocks": 2, "downscale_factor": 16},
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_file(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        adapter = T2IAdapter.published(name)
    shapes = shapes_of(adapter)
    file = tmp_path / "t2iadapter.safetensors"
    write_hollow(file, shapes)
    assert format_of(file) == "t2i_adapter"
    report = t2i_adapter.report(file)
    assert report.keys().exact, str(report.keys())
    with torch.device("meta"):
        assert describe(build("control", report.description["control"])) == describe(adapter)
    some = next(key for key in sorted(shapes) if key.endswith("bias"))
    write_hollow(file, {**{key: shape for key, shape in shapes.items() if key != some}, "odd": (3,)})
    with pytest.raises(KeyMismatch, match="1 missing"):
        sfumato.load(file)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_folder_of_diffusers_and_its_file_alone(kind: str, tmp_path: Path) -> None:
    import diffusers

    reference = diffusers.T2IAdapter(in_channels=1, adapter_type=kind, **KINDS[kind]).eval()
    reference.load_state_dict(drawn(reference.state_dict(), 1))
    reference.save_pretrained(tmp_path / "a")
    hint = normal(1, 1, 128, 64)
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / "adapter.safetensors"
    bare.write_bytes((tmp_path / "a" / "diffusion_pytorch_model.safetensors").read_bytes())
    for place in (tmp_path / "a", bare):
        adapter = sfumato.load(place).denoiser.network
        assert isinstance(adapter, T2IAdapter)
        for mine, theirs in zip(adapter.maps(hint), reference(hint), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    # The same weights under the released names, in a file of torch.save.
    torch.save(adapter.state_dict(), tmp_path / "released.pth")
    again = sfumato.load(tmp_path / "released.pth").denoiser.network
    assert describe(again) == describe(adapter)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in adapter.state_dict().items())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "adapter_type": "full_adaptor"}))
    with pytest.raises(NotFound, match="did you mean full_adapter"):
        t2i_adapter.report(tmp_path / "a")


@torch.no_grad()
def test_a_joined_model(tmp_path: Path) -> None:
    settings = {"channels": 32, "multipliers": (1, 2), "blocks": 2, "attention": (1,), "heads": 4}
    network = randomised(SDUNet(**settings, in_channels=3, out_channels=3))
    model = Model(
        NetworkDenoiser(network, Flow(), Velocity(), "thousand").eval(),
        build("conditioner", "nothing"),
        Pixel(multiple=2),
        {"size": [16, 16], "steps": 2},
    )
    adapter = randomised(T2IAdapter.of(network, hint_channels=1, factor=1))
    joined = controlled(model, adapter, "sketch")
    sketch = normal(1, 16, 16).clamp(-1, 1)
    made = sfumato.generate(joined, sketch=sketch, seed=3).tensor
    assert (made - sfumato.generate(model, seed=3).tensor).abs().max() > 1e-3
    sfumato.save(joined, tmp_path / "m")
    assert torch.equal(sfumato.generate(sfumato.load(tmp_path / "m"), sketch=sketch, seed=3).tensor, made)
    odd = {name: tensor for name, tensor in adapter.state_dict().items()}
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(InvalidInput, match="it reads 1 numbers a place"):
        sfumato.load(tmp_path / "odd.safetensors")
