"""Folders of models whose files are links, devices, pipes and other folders: only what is inside is read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFound, SfumatoError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def tree(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


@pytest.fixture
def whole(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders / "diffusers" / "model", tmp_path / "model"))


def strays(file: Path, outside: Path) -> dict[str, object]:
    """What may stand in a file's place, by what it is called, as what puts it there."""
    relative = os.path.relpath(outside, file.parent)
    return {
        "a link out": lambda: file.symlink_to(outside),
        "a relative link out": lambda: file.symlink_to(relative),
        "a link by a link": lambda: (
            (file.parent / "step").symlink_to(outside.parent),
            file.symlink_to(Path("step") / outside.name),
        ),
        "a link up and down": lambda: file.symlink_to(Path("..") / file.parent.name / relative),
        "a link to a device": lambda: file.symlink_to("/dev/zero"),
        "a link to nothing at all": lambda: file.symlink_to("/dev/null"),
        "a link to a system's file": lambda: file.symlink_to("/etc/hostname"),
        "a link to the folder above": lambda: file.symlink_to(".."),
        "a socket": lambda: _socket(file),
        "a link to a process": lambda: file.symlink_to("/proc/self/environ"),
        "a pipe": lambda: os.mkfifo(file),
        "a link to nothing": lambda: file.symlink_to(file.parent / "nothing"),
        "a link to itself": lambda: file.symlink_to(file.name),
        "a folder": lambda: file.mkdir(),
        "a link to a folder": lambda: file.symlink_to(outside.parent, target_is_directory=True),
    }


def _socket(file: Path) -> None:
    # The path of a socket is short: it is bound where it stands.
    here = os.getcwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(file.name)
    finally:
        os.chdir(here)


def test_200_strays_are_refused_and_no_pipe_is_waited_for(folders: Path, whole: Path, tmp_path: Path) -> None:
    """Every file of both kinds of folders in turn is replaced in every way, then put back."""
    native = Path(shutil.copytree(folders / "native" / "model", tmp_path / "native"))
    places = [(whole, file) for file in tree(whole)] + [(native, file) for file in tree(native)]
    tried, optional = 0, {"special_tokens_map.json", "tokenizer_config.json"}
    for number, (root, file) in enumerate(places):
        outside = tmp_path / "outside" / str(number) / file.name
        outside.parent.mkdir(parents=True)
        file.rename(outside)
        for name, put in strays(file, outside).items():
            if name == "a link to nothing" and file.name in optional:
                continue
            put()  # type: ignore[operator]
            start = time.perf_counter()
            with pytest.raises(SfumatoError) as caught:
                load(root)
            assert "\n" not in str(caught.value), name
            assert time.perf_counter() - start < 60, name
            tried += 1
            (file.parent / "step").unlink(missing_ok=True)
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        shutil.move(outside, file)
    assert tried >= 200
    load(whole)
    load(native)


def test_where_a_link_leads_is_told(whole: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "x"}')
    (whole / "unet" / "config.json").unlink()
    (whole / "unet" / "config.json").symlink_to(secret)
    with pytest.raises(InvalidInput, match=r"unet/config\.json: it leads out .* to .*secret\.json") as caught:
        load(whole)
    assert "password" not in str(caught.value)
    shutil.move(whole / "vae", tmp_path / "vae")
    (whole / "vae").symlink_to(tmp_path / "vae", target_is_directory=True)
    (whole / "unet" / "config.json").unlink()
    with pytest.raises(InvalidInput, match="leads out"):
        load(whole)


def test_links_inside_the_folder_and_what_nobody_reads_are_no_matter(whole: Path, tmp_path: Path) -> None:
    before = load(whole)
    shutil.move(whole / "unet", whole / "network")
    (whole / "unet").symlink_to("network", target_is_directory=True)
    (whole / "pictures").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(whole / "preview.fifo")
    (tmp_path / "here").symlink_to(whole, target_is_directory=True)
    (tmp_path / "outside.png").write_bytes(b"")
    again = load(tmp_path / "here")
    for part, module in before.modules().items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(again.modules()[part].state_dict()[name], tensor)


def test_a_snapshot_of_the_hub_leads_to_its_own_blobs_and_no_further(whole: Path, tmp_path: Path) -> None:
    """The cache keeps files under their hash, and a snapshot of links to them."""
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / REVISION, cache / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(tree(whole)):
        link = snapshot / file.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / f"{number:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    load(snapshot)
    other = tmp_path / "models--owner--other" / "blobs" / "0"
    other.parent.mkdir(parents=True)
    shutil.copy(whole / "unet" / "config.json", other)
    (snapshot / "unet" / "config.json").unlink()
    (snapshot / "unet" / "config.json").symlink_to(other)
    with pytest.raises(InvalidInput, match="leads out"):
        load(snapshot)


@pytest.mark.parametrize(
    "name",
    ["../../x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x\0.safetensors", "x.bin", "", "~/x"],
)
def test_an_index_names_files_beside_it(whole: Path, name: str) -> None:
    part = whole / "unet"
    weights = part / "diffusion_pytorch_model.safetensors"
    weights.rename(whole.parent / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    (part / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(SfumatoError, match=r"no plain file name|cannot be opened") as caught:
        load(whole)
    assert not isinstance(caught.value, NotFound)
