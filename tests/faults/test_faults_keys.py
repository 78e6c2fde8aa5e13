"""Weights that do not fit, and settings of giants: refused before memory is taken, and names told."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.checkpoints.keys import compare
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, KeyMismatch, SfumatoError
from sfumato.model import MAX_TENSORS, Model
from sfumato.processes.betas import Betas

FORMS = {
    "one file": ("model.safetensors", "model.safetensors", "model.diffusion_model.out.0.weight"),
    "a folder": ("diffusers/model", "unet/diffusion_pytorch_model.safetensors", "conv_norm_out.weight"),
    "native": ("native/model", "model.safetensors", "network.out.0.weight"),
}
"""By name: what is loaded, the file of it that is changed, and a tensor of that."""


@pytest.fixture(params=FORMS)
def place(request: pytest.FixtureRequest, folders: Path, tmp_path: Path) -> tuple[Path, Path, str]:
    """(What is loaded, its file of weights, a name in that)."""
    source, file, name = FORMS[request.param]
    copy = tmp_path / Path(source).name
    (shutil.copytree if (folders / source).is_dir() else shutil.copy)(folders / source, copy)
    return copy, copy / file if copy.is_dir() else copy, name


def changed(place: tuple[Path, Path, str], change: Any) -> str:
    """What is said of the model once its tensors are changed."""
    tensors = load_file(place[1])
    change(tensors, place[2])
    save_file(tensors, place[1])
    with pytest.raises(KeyMismatch) as caught:
        load(place[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_renamed_tensor_is_told_with_its_nearest(place: tuple[Path, Path, str]) -> None:
    def rename(tensors: dict[str, Any], name: str) -> None:
        tensors[name.replace("out", "oot")] = tensors.pop(name)

    said = changed(place, rename)
    assert "1 missing: network.out.0.weight (nearest: " in said
    assert "1 unexpected: " in said


def test_a_tensor_less_more_and_of_another_shape(place: tuple[Path, Path, str]) -> None:
    def change(tensors: dict[str, Any], name: str) -> None:
        tensors[name.replace("weight", "bias")] = torch.zeros(3)
        tensors["extra.thing"] = torch.zeros(1)

    said = changed(place, change)
    assert "1 other shapes: network.out.0.bias [32], got [3]" in said
    assert "extra.thing" in said
    assert "missing" not in said


def test_of_many_ten_are_listed(place: tuple[Path, Path, str]) -> None:
    def change(tensors: dict[str, Any], name: str) -> None:
        for each in [each for each in tensors if ".transformer_blocks.0.ff." in each]:
            tensors[each.replace(".ff.", ".feed_forward.")] = tensors.pop(each)

    said = changed(place, change)
    missing, unexpected = (part for part in said.split("; ") if "missing" in part or "unexpected" in part)
    assert "16 missing: network." in missing
    assert missing.count("(nearest: ") == 10
    assert missing.endswith(", and 6 more")
    assert unexpected.count("feed_forward") == 10
    assert ", and 6 more" in unexpected


def test_nothing_is_made_up_for_what_is_missing(place: tuple[Path, Path, str]) -> None:
    """Not strict, all but the missing is loaded, and it is said what keeps its initial values."""
    before = load(place[0]).modules()["network"].state_dict()
    tensors = load_file(place[1])
    del tensors[place[2]]
    save_file(tensors, place[1])
    record = place[0] / "model.json"
    if record.is_file():
        from sfumato.checkpoints.native import hash_of

        told = json.loads(record.read_text())
        told["weights"]["sha256"] = hash_of(place[1])
        record.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match="1 missing: network.out.0.weight"):
        model = load(place[0], strict=False)
    after = model.modules()["network"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "out.0.weight")


def test_the_report_of_wholly_other_names_is_quick() -> None:
    mine = {f"model.blocks.{i}.attention.to_q.weight": (3, 3) for i in range(3000)}
    theirs = {f"module.layers.{i}.attention.query.weight": (3, 3) for i in range(3000)}
    start = time.process_time()
    said = str(compare(mine, theirs))
    assert time.process_time() - start < 5
    assert "3000 missing" in said
    assert said.count("nearest") <= 10


GIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "channels": ("unet/config.json", {"block_out_channels": [10**9, 10**9]}),
    "layers": ("unet/config.json", {"layers_per_block": 10**9}),
    "transformers": ("unet/config.json", {"transformer_layers_per_block": 10**9}),
    "tokens": ("unet/config.json", {"cross_attention_dim": 10**12}),
    "classes": ("unet/config.json", {"num_class_embeds": 10**9}),
    "more than 64 bits": ("unet/config.json", {"in_channels": 10**30}),
    "autoencoder": ("vae/config.json", {"block_out_channels": [2**30, 2**31]}),
    "autoencoder's layers": ("vae/config.json", {"layers_per_block": 10**9}),
    "vocabulary": ("text_encoder/config.json", {"vocab_size": 10**9}),
    "depth": ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
    "length": ("text_encoder/config.json", {"max_position_embeddings": 10**10}),
    "steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
    "betas": ("scheduler/scheduler_config.json", {"trained_betas": [0.5] * 200_000}),
}


def test_giants_are_refused_before_memory_is_taken(folders: Path, tmp_path: Path) -> None:
    """In a process that may take no more than a little beyond what it has."""
    for number, (file, settings) in enumerate(GIANTS.values()):
        root = Path(shutil.copytree(folders / "diffusers" / "model", tmp_path / f"{number:02d}"))
        told = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps({**told, **settings}))
    code = """
import resource, sys, pathlib, time, warnings
from sfumato.checkpoints.load import load
from sfumato.core.errors import SfumatoError
warnings.simplefilter("ignore")
load(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for place in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        load(place)
        print(place.name, "was read")
    except SfumatoError as error:
        took = time.process_time() - start
        print(place.name, "refused" if took < 20 else f"took {took:.1f} s")
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    whole = str(folders / "diffusers" / "model")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), whole], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-500:]
    *said, grown = done.stdout.splitlines()
    assert said == [f"{number:02d} refused" for number in range(len(GIANTS))]
    assert int(grown.split()[1]) < 150


def test_layers_without_end_are_refused_by_their_number(fuzz: ModuleType) -> None:
    network = {"name": "mlp", "depth": 10**9}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput, match=f"more than {MAX_TENSORS:,} tensors"), torch.device("meta"):
        Model.from_description({"network": network, "process": "vp", "prediction": "noise"})
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 200
    # Whoever builds afterwards is not counted with it.
    assert isinstance(fuzz.model(False), Model)
    torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(MAX_TENSORS // 2 + 1)))
    with pytest.raises(SfumatoError, match="too many"):
        Betas(steps=10**9)
