"""DiT: outputs of the published code, names and shapes of every published size, refusals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_recipes import KEYS, hollow, log_variance, recorded, told

from sfumato.checkpoints.dit import report, to_ours, to_theirs
from sfumato.checkpoints.load import load
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.generation.generate import generate
from sfumato.interfaces.cli import main
from sfumato.networks.dit import DiT
from sfumato.samplers.ddim import DDIM
from sfumato.spaces.latent import Latent
from sfumato.times.uniform import Uniform

PUBLISHED = sorted(name for name in KEYS if name.startswith("DiT"))


def _training(case: Any) -> dict[str, Any]:
    """A checkpoint as its training leaves it; the weights that were not averaged are other ones."""
    weights = {"pos_embed": case.tensors["pos_embed"], **case.weights}
    other = {f"module.{name}": tensor + 1 for name, tensor in weights.items()}
    return {"model": other, "ema": weights, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)}


@pytest.mark.parametrize("zipped", [True, False])
def test_what_the_published_code_says_of_x0_and_variance(zipped: bool, tmp_path: Path) -> None:
    case = recorded("dit")
    path = tmp_path / "0400000.pt"
    torch.save(_training(case), path, _use_new_zipfile_serialization=zipped)
    model = load(path, **case.settings)
    k = case.tensors["t"]
    # The last class of theirs is "no class": nothing said, here.
    said = [None if y == 5 else str(int(y)) for y in case.tensors["y"]]
    condition = model.conditioner(3, label=said)
    null = model.conditioner.null(condition)
    assert torch.equal(condition.vector[2], null.vector[0])
    assert null.vector.argmax(1).tolist() == [5] * 3
    level = model.process(((k + 1).double() / 1000).view(-1, 1, 1, 1))
    with torch.no_grad():
        out = model.denoiser(case.tensors["x"], level, condition)
    torch.testing.assert_close(out.x0, case.tensors["x0"], rtol=1e-5, atol=2e-5)
    assert out.variance is not None
    spread = log_variance(model, out.variance, k).float()
    torch.testing.assert_close(spread, case.tensors["log_variance"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    size, patch = name[4:].split("/")[0], int(name.split("/")[1][0])
    pixels = 512 if "512" in name else 256
    with torch.device("meta"):
        network = DiT.published(size, patch)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    theirs = {"pos_embed": (1, (pixels // 8 // patch) ** 2, network.width), **shapes}
    assert told(theirs) == KEYS[name], "not the names and shapes of the published code"
    found = report(hollow(tmp_path / "n.safetensors", theirs))
    keys = found.keys()
    assert keys.exact
    assert {name.removeprefix("network.") for name in keys.matched} == shapes.keys()
    assert found.published == f"DiT-{size}/{patch}"
    assert found.card["size"] == [pixels, pixels]
    settings = dict(found.description["network"])
    assert settings.pop("name") == "dit"
    assert settings == {key: getattr(network, key) for key in settings}


def test_names_go_both_ways_and_the_positions_are_the_published_ones() -> None:
    case = recorded("dit")
    theirs = {"pos_embed": case.tensors["pos_embed"], **case.weights}
    ours = to_ours(theirs)
    assert len(ours) == len(theirs) - 1
    back = to_theirs(ours, side=4)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], case.weights[name]) for name in case.weights)
    torch.testing.assert_close(back["pos_embed"], case.tensors["pos_embed"], rtol=0, atol=2e-7)


def test_other_positions_heads_and_labels_are_refused(tmp_path: Path) -> None:
    case, path = recorded("dit"), tmp_path / "m.pt"
    torch.save({"pos_embed": case.tensors["pos_embed"].flip(1), **case.weights}, path)
    with pytest.raises(InvalidInput, match="positions that are not the fixed sinusoids"):
        load(path, heads=3)
    with pytest.raises(InvalidInput, match="no published DiT is 48 wide and 2 deep") as caught:
        load(path)
    assert "heads=16" in caught.value.do
    with pytest.raises(InvalidInput, match="6 labels for 5 classes"):
        load(path, heads=3, labels=list("abcdef"))
    for heads in (5, 0, -3):
        with pytest.raises(InvalidInput):
            load(path, heads=heads)
    weights = dict(case.weights)
    weights["blocks.1.attn.qvk.weight"] = weights.pop("blocks.1.attn.qkv.weight")
    torch.save(weights, path)
    with pytest.raises(KeyMismatch, match=r"blocks\.1\.attn\.qkv\.weight \(nearest: .*blocks\.1\.attn\.qvk"):
        load(path, heads=3)
    torch.save({**case.weights, "final_layer.linear.weight": torch.zeros(17, 48)}, path)
    with pytest.raises(InvalidInput, match="not those of a DiT"):
        load(path, heads=3)


def test_latents_are_walked_and_no_picture_is_made_without_the_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, path = recorded("dit"), tmp_path / "m.pt"
    torch.save(_training(case), path)
    model = load(path, heads=3, labels=["a", "b", "c", "d", "e"])
    with pytest.raises(InvalidInput, match="the autoencoder that turns them into pictures is not part of it"):
        generate(model, label="a", seed=1)
    for refused in (model.space.encode, model.space.decode):
        with pytest.raises(InvalidInput, match="autoencoder"):
            refused(torch.zeros(1, 4, 8, 8))
    assert isinstance(model.space, Latent)
    shape = model.space.latent_shape(64, 64)
    assert shape == (4, 8, 8)
    with pytest.raises(InvalidInput, match="not a multiple of 16 pixels"):
        model.space.latent_shape(64, 72)
    condition = model.conditioner(1, label="c")
    reverse = ReverseProcess(model.denoiser, model.process, condition, Noise([7]))
    grid = Uniform()(model.process, 4)
    with torch.no_grad():
        latents = sample(DDIM(), reverse, reverse.prior((1, *shape), float(grid[0])), grid)
    assert latents.shape == (1, 4, 8, 8)
    assert bool(latents.isfinite().all())
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    assert "heads" in json.loads(capsys.readouterr().out)["missing"]
    with torch.no_grad():
        vector = torch.eye(6)[[2]]
        direct = DiT(width=48, depth=2, heads=3, classes=6).eval()
        direct.load_state_dict(case.weights)
        x, time = case.tensors["x"][:1], torch.tensor([9.0])
        same = model.denoiser.network(x, time, Condition(vector=vector))
        assert torch.equal(same, direct(x, time, Condition(vector=vector)))
