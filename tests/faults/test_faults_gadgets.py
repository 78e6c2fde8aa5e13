"""Pickles that would act, at every door a file of weights comes in by: refused, and nothing is ever done."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import pty
import runpy
import shutil
import subprocess
import sys
import tarfile
import webbrowser
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints.load import load
from sfumato.checkpoints.safe import read_tensors
from sfumato.checkpoints.torch_file import read_torch
from sfumato.core.errors import SfumatoError
from sfumato.networks import released
from sfumato.training.run_file import Run


class Payload:
    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.told = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.told


def payloads(canary: Path) -> dict[str, Any]:
    """What a pickle may call, each of which would leave the canary behind or start something."""
    code = f"open({str(canary)!r}, 'w').write('x')"
    touch = ["touch", str(canary)]
    return {
        "os.system": Payload(os.system, " ".join(touch)),
        "os.popen": Payload(os.popen, " ".join(touch)),
        "os.mkdir": Payload(os.mkdir, str(canary)),
        "os.execv": Payload(os.execv, "/bin/touch", touch),
        "os.posix_spawn": Payload(os.posix_spawn, "/bin/touch", touch, {}),
        "exec": Payload(builtins.exec, code),
        "eval": Payload(builtins.eval, code),
        "compile": Payload(builtins.compile, code, "x", "exec"),
        "open": Payload(builtins.open, str(canary), "w"),
        "getattr": Payload(builtins.getattr, str, "format"),
        "import": Payload(importlib.import_module, "antigravity"),
        "__import__": Payload(builtins.__import__, "this"),
        "Popen": Payload(subprocess.Popen, touch),
        "run": Payload(subprocess.run, touch),
        "runpy": Payload(runpy.run_path, str(canary)),
        "pty": Payload(pty.spawn, touch),
        "webbrowser": Payload(webbrowser.open, "file:///"),
        "rmtree": Payload(shutil.rmtree, str(canary.parent / "keep")),
        "copy": Payload(shutil.copy, "/etc/hostname", str(canary)),
        "write": Payload(Path.write_text, canary, "x"),
        "torch.load": Payload(torch.load, str(canary)),
        "torch.save": Payload(torch.save, 1, str(canary)),
        "torch.hub": Payload(torch.hub.load, "a/b", "c"),
        "pickle.loads": Payload(pickle.loads, pickle.dumps(Payload(os.system, " ".join(touch)))),
        "a state": Payload(io.StringIO, state=("x", "\n", 0, {"y": Payload(os.system, " ".join(touch))})),
    }


def forms(payload: Any) -> dict[str, bytes]:
    """A payload in every kind of file that people call weights."""
    raw = {protocol: pickle.dumps({"weight": payload}, protocol) for protocol in (0, 2, 4)}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", raw[2])
        archive.writestr("archive/version", "3\n")
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", zipped.getvalue())
        archive.writestr("archive/other.pkl", raw[2])
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(raw[2])
        archive.addfile(member, io.BytesIO(raw[2]))
    legacy = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {})) + raw[2]
    return {
        "raw 0": raw[0],
        "raw 2": raw[2],
        "raw 4": raw[4],
        "zip": zipped.getvalue(),
        "zip with a broken checksum": zipped.getvalue().replace(raw[2], raw[2][:-2] + b"x."),
        "zip in a zip": nested.getvalue(),
        "tar": tarred.getvalue(),
        "before 1.6": legacy,
    }


@pytest.fixture
def doors(folders: Path, tmp_path: Path) -> dict[str, Callable[[bytes], Any]]:
    """Everything that takes a file of weights, as what is done with its bytes."""
    diffusers = Path(shutil.copytree(folders / "diffusers" / "model", tmp_path / "diffusers"))
    native = Path(shutil.copytree(folders / "native" / "model", tmp_path / "native"))
    (diffusers / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (diffusers / "text_encoder" / "model.safetensors").unlink()

    def at(place: Path, read: Callable[[Path], Any], whole: Path | None = None) -> Callable[[bytes], Any]:
        def door(data: bytes) -> Any:
            place.write_bytes(data)
            return read(whole or place)

        return door

    def start(place: Path) -> Any:
        model = {"network": "mlp", "process": "vp", "prediction": "noise"}
        return Run(model=model, data={"name": "emoji"}, start=str(place)).build_model()

    def first_stage(place: Path) -> Any:
        space = {"name": "latent", "autoencoder": {"from": str(place)}}
        model = {"network": "mlp", "process": "vp", "prediction": "noise", "space": space}
        return Run(model=model, data={"name": "emoji"}).build_model()

    # Of released weights the reader alone, as the networks they are of take long to build.
    return {
        "a model, .ckpt": at(tmp_path / "a.ckpt", load),
        "a model, .safetensors": at(tmp_path / "a.safetensors", load),
        "a model called a picture": at(tmp_path / "a.png", load),
        "read_torch": at(tmp_path / "b.pt", read_torch),
        "read_torch, mapped": at(tmp_path / "c.pt", lambda path: read_torch(path, mapped=True)),
        "a part of a folder": at(diffusers / "unet" / "diffusion_pytorch_model.bin", load, diffusers),
        "a tower of a folder": at(diffusers / "text_encoder" / "pytorch_model.bin", load, diffusers),
        "native weights": at(native / "model.safetensors", load, native),
        "released weights": at(tmp_path / "trunk.pth", released.read_tensors),
        "a checkpoint of a run": at(tmp_path / "model.safetensors", read_tensors),
        "start of a run": at(tmp_path / "start.ckpt", start),
        "first stage of a run": at(tmp_path / "stage.ckpt", first_stage),
    }


@pytest.fixture
def acts() -> Iterator[list[str]]:
    """What is started or asked of the network meanwhile; an audit hook cannot be taken away, only ignored."""
    seen: list[str] = []
    watching = [True]
    # Folders are no such act: PyTorch makes one of its own to look at tar archives, and leaves it empty.
    events = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
    more = ("socket.connect", "webbrowser.open", "urllib.Request")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event in (*events, *more):
            seen.append(event)

    sys.addaudithook(hook)
    yield seen
    watching[0] = False


@pytest.mark.filterwarnings("ignore")
def test_no_pickle_acts_at_any_door(
    doors: dict[str, Callable[[bytes], Any]], acts: list[str], tmp_path: Path
) -> None:
    canary, keep = tmp_path / "canary", tmp_path / "keep"
    keep.mkdir()
    acts.clear()
    tried = 0
    for name, payload in payloads(canary).items():
        for form, data in forms(payload).items():
            for door, enter in doors.items():
                with pytest.raises(SfumatoError) as caught:
                    enter(data)
                assert "\n" not in str(caught.value), (name, form, door)
                tried += 1
    assert tried == 25 * 8 * 12
    assert not canary.exists()
    assert keep.is_dir()
    assert acts == []


def test_the_canary_sings_where_pickles_are_run(tmp_path: Path, acts: list[str]) -> None:
    """The gadgets are real: unpickled as Python does it, they act, and the watch sees it."""
    canary = tmp_path / "canary"
    for name in ("os.system", "exec", "run", "pickle.loads", "write"):
        canary.unlink(missing_ok=True)
        pickle.loads(pickle.dumps(payloads(canary)[name]))
        assert canary.exists(), name
    assert {"os.system", "subprocess.Popen"} <= set(acts)
