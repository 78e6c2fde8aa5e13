"""Loading: the weights are read once, into memory of their own, and hang on no file afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.checkpoints import native
from sfumato.checkpoints.hollow import hollow
from sfumato.checkpoints.load import load
from sfumato.checkpoints.safe import read_tensors
from sfumato.checkpoints.torch_file import read_state
from sfumato.checkpoints.weights import copy_out
from sfumato.core.errors import CheckpointCorrupt, SfumatoError
from sfumato.model import Model

_CHILD = """
import json, sys
from pathlib import Path
import torch, sfumato, sfumato.generation.generate
from sfumato.checkpoints.load import formats, load
from sfumato.checkpoints.weights import look, take
from sfumato.generation.memory import bytes_of_weights
formats()
def peak():
    # Not getrusage, whose peak a child inherits from whoever started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
what, path = sys.argv[1:]
before = peak()
if what == "model":
    held = load(path)
    weights = bytes_of_weights(*held.modules().values())
else:
    held = take(path, look(path)[0])
    weights = sum(each.numel() * each.element_size() for each in held.values())
print(json.dumps([before, weights, peak() - before]))
"""


def _peak(what: str, path: Path) -> tuple[int, int]:
    """(Bytes of the weights, bytes by which the peak of a process grew while it loaded them)."""
    done = subprocess.run([sys.executable, "-c", _CHILD, what, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, weights, grown = json.loads(done.stdout)
    assert before > 50 * 2**20, "the interpreter's own memory was not seen"
    return weights, grown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are told by Linux")
@pytest.mark.parametrize("form", ["native", "safetensors", "torch.save"])
def test_the_peak_of_loading_is_the_weights_and_no_second_copy(form: str, tmp_path: Path) -> None:
    if form == "native":
        network = {"name": "adm", "channels": 128, "multipliers": [1, 2, 3], "blocks": 2}
        with torch.device("meta"):
            model = Model.from_description({"network": network, "process": "vp", "prediction": "noise"})
        model.denoiser.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.denoiser.parameters():
                parameter.fill_(0.1)
        native.save(model, tmp_path / "m")
        weights, grown = _peak("model", tmp_path / "m")
    else:
        tensors = {f"w{i}": torch.full((12, 2**18), float(i)) for i in range(12)}
        path = tmp_path / "w.pt"
        if form == "torch.save":
            torch.save({"model": {"x": torch.ones(2**22)}, "ema": tensors}, path)
        else:
            save_file(tensors, path)
        weights, grown = _peak("weights", path)
    assert weights > 100 * 2**20
    assert grown <= 1.15 * weights + 24 * 2**20
    assert grown >= 0.8 * weights, "it was not read at all"


def test_a_loaded_model_is_ones_own_to_write_and_to_train(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path)
    first, second = load(tmp_path), load(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    network = first.denoiser.network
    image = torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    from sfumato.core.level import Level

    first.denoiser(
        image, Level(0.7, 0.7), first.conditioner(2, concept=["cat", "cat"])
    ).x0.square().mean().backward()
    optimizer.step()
    changed = [
        n for n, p in network.named_parameters() if not torch.equal(p, tiny.denoiser.network.state_dict()[n])
    ]
    assert changed
    assert all(p.is_leaf and p.requires_grad for p in network.parameters())
    ours = tiny.denoiser.network.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in second.denoiser.network.state_dict().items())
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_what_is_in_no_file_is_as_built_and_the_rest_holds_no_numbers() -> None:
    filters = {"name": "ncsnpp", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}
    description = {"network": filters, "process": "ve", "prediction": "score"}
    built = Model.from_description(description)
    model = hollow(lambda: Model.from_description(description))
    saved = model.denoiser.network.state_dict().keys()
    assert all(p.is_meta for p in model.denoiser.network.parameters())
    kernels = {n: b for n, b in built.denoiser.network.named_buffers() if n not in saved}
    assert kernels, "this network has no filters"
    ours = dict(model.denoiser.network.named_buffers())
    assert all(torch.equal(ours[name], kernel) for name, kernel in kernels.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_of_a_state_dict_has_memory_of_its_own(tmp_path: Path, zipped: bool) -> None:
    table = torch.randn(6, 4)
    held = {
        "whole": torch.randn(3, 5),
        "turned": table.T,
        "tied": table,
        "part": table[2:4],
        "half": torch.randn(7).half(),
        "brain": torch.randn(3).bfloat16(),
        "truth": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "one": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }
    path = tmp_path / "w.pt"
    torch.save({"outer": {"ema": held, "rest": torch.zeros(5)}}, path, _use_new_zipfile_serialization=zipped)
    found = read_state(path, "outer.ema")
    assert list(found) == list(held)
    for name, tensor in held.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()
        assert not found[name].requires_grad
    found["tied"].zero_()
    assert torch.equal(found["turned"], table.T)
    assert torch.equal(found["part"], table[2:4])
    assert read_state(path, "outer.ema", {"one"}).keys() == {"one"}
    assert read_state(path, "outer.nothing") == {}
    with pytest.raises(CheckpointCorrupt, match="changed while it was read"):
        copy_out(path, "outer.ema", {"one", "two"})


@pytest.mark.parametrize("form", ["safetensors", "torch.save"])
def test_a_file_that_shrinks_while_it_is_loaded_kills_nothing(form: str, tmp_path: Path) -> None:
    path, outcomes = tmp_path / "w", []
    tensors = {f"w{i}": torch.full((2**18,), float(i)) for i in range(16)}
    names = tensors.keys()
    for round_ in range(20):
        torch.save(tensors, path) if form == "torch.save" else save_file(tensors, path)
        size = path.stat().st_size
        go = threading.Event()

        def shrink(size: int = size, round_: int = round_, go: threading.Event = go) -> None:
            go.wait()
            os.truncate(path, size * round_ // 25)

        thread = threading.Thread(target=shrink)
        thread.start()
        go.set()
        try:
            found = copy_out(path, "", names) if form == "torch.save" else read_tensors(path)
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
            outcomes.append("read")
        except SfumatoError as error:
            outcomes.append("error" if "\n" not in str(error) else str(error))
        finally:
            thread.join()
    assert len(outcomes) == 20
    assert set(outcomes) <= {"read", "error"}
    assert "error" in outcomes, "no file shrank in time"
