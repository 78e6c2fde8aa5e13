"""The hub: nothing asks it but `fetch`, which ends in a model or in one sentence."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.checkpoints import native
from sfumato.checkpoints.hub import snapshot, wanted
from sfumato.checkpoints.load import load
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.interfaces.looking import inspect
from sfumato.model import Model

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as fetching a model asks for, with its faults."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    fault: str
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = urllib.parse.urlparse(self.path).path
        self.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.fault == "500":
            return self._send(500, b"", body)
        if path in ("/api/models/o/apples", "/api/models/o/apples/revision/main"):
            entries = [self._entry("rfilename", name) for name in self.files]
            told = {"id": "o/apples", "sha": COMMIT, "private": False, "tags": [], "siblings": entries}
            return self._send(200, json.dumps(told).encode(), body)
        if path.startswith("/api/models/o/apples/tree/"):
            return self._send(200, json.dumps([self._entry("path", n) for n in self.files]).encode(), body)
        name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
        if name not in self.files:
            return self._send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
        data = self.files[name]
        told = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.fault == "damaged" and name.endswith(".safetensors"):
            data = bytes(len(data))
        return self._send(200, data, body, told)

    def _entry(self, key: str, name: str) -> dict[str, Any]:
        data = self.files[name]
        entry: dict[str, Any] = {key: name, "type": "file", "size": len(data), "oid": _sha1(data)}
        entry["blobId"] = entry["oid"]
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def _send(self, code: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = self.fault == "cut" and code == 200 and "X-Repo-Commit" in (headers or {})
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if body and cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _etag(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else _sha1(data)


@pytest.fixture
def hub(tiny: Model, tmp_path: Path) -> Iterator[Any]:
    """A server with one model, o/apples; `hub(words, fault)` runs the command line against it."""
    native.save(tiny, tmp_path / "model")
    files = {each.name: each.read_bytes() for each in (tmp_path / "model").iterdir()}
    files |= {"README.md": b"---\nlicense: mit\n---\n", "big.onnx": bytes(1000)}
    handler = type("Handler", (Hub,), {"files": files, "fault": "", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*words: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        handler.fault = fault
        handler.asked.clear()
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
        }
        environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
        line = [sys.executable, "-m", "sfumato.interfaces.cli", *words]
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=100)

    run.asked = handler.asked  # type: ignore[attr-defined]
    run.cache = tmp_path / "hf" / "hub"  # type: ignore[attr-defined]
    yield run
    server.shutdown()
    server.server_close()


def test_fetch_copies_one_commit_once_and_only_what_is_read(hub: Any) -> None:
    done = hub("fetch", "o/apples", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["name"] == f"o/apples@{COMMIT}"
    assert {each.name for each in Path(told["path"]).iterdir()} == {
        "README.md",
        "model.json",
        "model.safetensors",
    }
    again = hub("fetch", "o/apples", "--json")
    assert json.loads(again.stdout) == told
    assert not [line for line in hub.asked if "/resolve/" in line and "safetensors" in line]
    # What is fetched is found with no network, by its name and by its commit.
    for name in ("o/apples", f"o/apples@{COMMIT}"):
        done = hub("inspect", name, "--json")
        assert json.loads(done.stdout)["what"].startswith("a model of sfumato"), done.stderr
        assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("o/pears", "", "o/pears: the hub knows no such model, or it is private"),
        ("o/apples", "500", "o/apples: the hub does not give it: it answers 500"),
        ("o/apples", "damaged", "o/apples: arrived damaged, twice: model.safetensors"),
    ],
)
def test_faults_of_the_hub_are_one_sentence(name: str, fault: str, message: str, hub: Any) -> None:
    done = hub("fetch", name, fault=fault)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_copy_is_told_and_fetched_again(hub: Any) -> None:
    done = hub("fetch", "o/apples", fault="cut")
    assert done.returncode == 2
    assert "the hub does not give it" in done.stderr
    assert done.stderr.count("\n") == 1
    done = hub("generate", "o/apples")
    assert done.returncode == 2
    assert "(sfumato fetch o/apples" in done.stderr
    assert hub.asked == []
    assert hub("fetch", "o/apples").returncode == 0
    assert hub("inspect", "o/apples").returncode == 0


def test_without_fetch_nothing_touches_the_network(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for ask in (load, inspect):
        with pytest.raises(
            NotFound, match=r"o/apples: neither here nor in the hub's cache \(sfumato fetch o/apples"
        ):
            ask("o/apples")
    store = tmp_path / "cache" / "models--o--apples"
    native.save(tiny, store / "snapshots" / COMMIT)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(COMMIT)
    assert load("o/apples").card["source"] == f"o/apples@{COMMIT}"
    assert load(f"o/apples@{COMMIT}").card["hash"] == load("o/apples").card["hash"]
    assert inspect(Path("o/apples"))["keys"] == "8 of 8 tensors fit"
    with pytest.raises(NotFound, match="sfumato fetch o/apples@v2"):
        load("o/apples@v2")
    (store / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(
        NotFound, match=r"model\.safetensors: the weights are missing \(sfumato fetch o/apples@0123"
    ):
        load("o/apples")
    for name in ("o/../apples", "o/apples@../../x", "/etc/passwd"):
        with pytest.raises(NotFound):
            snapshot(name)


SD = [
    "model_index.json",
    "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "README.md",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/openvino_model.bin",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "safety_checker/model.safetensors",
    "unet/onnx/model.safetensors",
]


def test_of_a_pipeline_one_kind_of_weights_a_part_is_fetched() -> None:
    def weights(variant: str) -> set[str]:
        return {name for name in wanted(SD, variant) if not name.endswith((".json", ".txt", ".md"))}

    shards = {f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    rest = {"vae/diffusion_pytorch_model.bin", *shards}
    assert weights("") == {"unet/diffusion_pytorch_model.safetensors", *rest}
    assert weights("fp16") == {"unet/diffusion_pytorch_model.fp16.safetensors", *rest}
    assert {"model_index.json", "tokenizer/merges.txt", "text_encoder/model.safetensors.index.json"} <= set(
        wanted(SD)
    )
    only_half = ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert wanted(only_half) == only_half


def test_of_a_part_alone_one_kind_of_weights_is_fetched() -> None:
    weights = [f"diffusion_pytorch_model{end}" for end in (".bin", ".fp16.safetensors", ".safetensors")]
    names = ["config.json", "images/bird.png", *weights, "control_canny.pth"]
    assert wanted(names) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert wanted(names, "fp16") == ["config.json", "diffusion_pytorch_model.fp16.safetensors"]
    assert wanted(["config.json", "whole.ckpt"]) == ["config.json", "whole.ckpt"]


def test_a_part_alone_is_its_folder_and_a_whole_model_its_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for owner, weights, found in (
        ("part", "diffusion_pytorch_model.safetensors", ""),
        ("half", "diffusion_pytorch_model.fp16.safetensors", ""),
        ("whole", "anything.ckpt", "anything.ckpt"),
    ):
        folder = tmp_path / f"models--{owner}--x" / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        for name in ("config.json", weights):
            (folder / name).write_bytes(b"{}")
        assert snapshot(f"{owner}/x@{COMMIT}")[0] == folder / found


def test_of_single_files_there_must_be_one() -> None:
    assert wanted(["README.md", "sd.safetensors", "sd.ckpt"]) == ["README.md", "sd.safetensors"]
    with pytest.raises(InvalidInput, match=r"holds 2 files of weights: a\.safetensors, b\.safetensors"):
        wanted(["a.safetensors", "b.safetensors"])
    with pytest.raises(InvalidInput, match="no model in a layout that is read"):
        wanted(["data/train.parquet"])
