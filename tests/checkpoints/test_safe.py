"""Damaged, hostile and foreign weights files: refused with a typed error, never run, never a crash."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as library_load
from safetensors.torch import load_file, save, save_file

from sfumato.checkpoints.load import load
from sfumato.checkpoints.safe import DTYPES, MAX_HEADER, read_header, read_tensors, refuse_non_finite
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFinite, NotFound, SfumatoError


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(4, 3, 3, 3),
        "a.bias": torch.randn(4).to(torch.bfloat16),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "mask": torch.tensor([True, False, True]),
        "ids": torch.arange(7),
        "half": torch.randn(5).half(),
        "bytes": torch.arange(9, dtype=torch.uint8),
    }


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and bytes(a[k].contiguous().view(torch.uint8).flatten().tolist() if a[k].ndim else [])
        == bytes(b[k].contiguous().view(torch.uint8).flatten().tolist() if b[k].ndim else [])
        for k in a
    )


def test_reads_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    every = {f"t{i}": torch.zeros(3).to(dtype) for i, dtype in enumerate(DTYPES.values())}
    save_file({**_tensors(), **every}, path, metadata={"note": "ü [1, 2]"})
    ours, theirs = read_tensors(path), load_file(path)
    assert _equal(ours, theirs)
    assert ours["scalar"] == 3.5
    assert read_header(path).metadata == {"note": "ü [1, 2]"}


def test_truncation_at_1000_offsets_is_typed_and_tells_sizes(tmp_path: Path) -> None:
    whole = save({**_tensors(), "big": torch.randn(50, 50)})
    path = tmp_path / "cut.safetensors"
    slowest = 0.0
    for offset in sorted({round(i * (len(whole) - 1) / 999) for i in range(1000)}):
        path.write_bytes(whole[:offset])
        start = time.perf_counter()
        with pytest.raises(CheckpointCorrupt, match=r"truncated: expected .* got"):
            read_tensors(path)
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 0.1  # 10 ms on a quiet machine


def _mutant(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    (length,) = struct.unpack("<Q", data[:8])
    kind = draw.randrange(8)
    if kind == 0:  # a bit anywhere in the header
        data[draw.randrange(8 + length)] ^= 1 << draw.randrange(8)
    elif kind == 1:  # a claimed header length
        data[:8] = struct.pack("<Q", draw.choice([0, 1, length - 1, length + 1, 10**8, 2**63, 2**64 - 1]))
    elif kind == 2:
        del data[draw.randrange(len(data)) :]
    elif kind == 3:
        data += draw.randbytes(draw.randrange(1, 64))
    elif kind == 4:  # a number of the header
        places = [i for i in range(8, 8 + length) if chr(data[i]).isdigit()]
        data[draw.choice(places)] = ord(draw.choice("0123456789-e."))
    elif kind == 5:  # a claim changed as JSON
        header = json.loads(data[8 : 8 + length])
        entry = header[draw.choice([name for name in header if name != "__metadata__"])]
        field = draw.choice(["dtype", "shape", "data_offsets"])
        entry[field] = draw.choice(
            [
                "F32",
                "F8_E8M0",
                "BOOL",
                [],
                [-1],
                [2**62, 8],
                [0, 4],
                [4, 0],
                [1.5],
                None,
                {},
                [[1]],
                [True, 8],
            ]
        )
        return _file(header, bytes(data[8 + length :]))
    elif kind == 6:  # pieces swapped
        a, b = sorted(draw.sample(range(len(data)), 2))
        data[a:b] = data[a:b][::-1]
    else:  # a name
        header = json.loads(data[8 : 8 + length])
        name = draw.choice(list(header))
        header[draw.choice(["__class__", "x.__class__.y", "", "a" * 600, "\ud800", "é"])] = header.pop(name)
        return _file(header, bytes(data[8 + length :]))
    return bytes(data)


def test_10000_mutants_are_refused_or_read_as_the_library_reads_them(tmp_path: Path) -> None:
    whole = save(_tensors(), metadata={"format": "pt"})
    draw = random.Random(7)
    path = tmp_path / "m.safetensors"
    refused = read = 0
    start = time.perf_counter()
    slowest = 0.0
    for _ in range(10_000):
        data = _mutant(whole, draw)
        path.write_bytes(data)
        began = time.perf_counter()
        try:
            ours = read_tensors(path)
        except SfumatoError:
            refused += 1
        else:
            read += 1
            try:
                assert _equal(ours, library_load(data))
            except SafetensorError as error:
                pytest.fail(f"read what the library refuses: {error}")
        slowest = max(slowest, time.perf_counter() - began)
    assert refused > 7000
    assert read > 100
    assert slowest < 1
    assert time.perf_counter() - start < 60


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

HOSTILE = {
    "header of 10^8": _file(b"{}", length=10**8),
    "header of 2^63": _file(b"{}", length=2**63),
    "header of 2^64-1": _file(b"{}", length=2**64 - 1),
    "just over the limit": _file(b"{" + b" " * MAX_HEADER + b"}"),
    "deep JSON": _file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep objects": _file(b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
    "wide JSON": _file(b'{"a":[' + b"1," * 5_000_000 + b"1]}"),
    "too many tensors": _file(
        b"{"
        + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000))
        + b"}"
    ),
    "duplicate names": _file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "class name": _file({"x.__class__.y": _ONE}, b"\0" * 4),
    "long name": _file({"x" * 10_240: _ONE}, b"\0" * 4),
    "surrogate name": _file(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "rank 9": _file({"a": {**_ONE, "shape": [1] * 9}}, b"\0" * 4),
    "overflowing shape": _file({"a": {**_ONE, "shape": [2**62, 2**62]}}, b"\0" * 4),
    "wrapping shape": _file({"a": {**_ONE, "shape": [2**63 - 1, 2]}}, b"\0" * 4),
    "negative shape": _file({"a": {**_ONE, "shape": [-1]}}, b"\0" * 4),
    "boolean size": _file({"a": {**_ONE, "shape": [True]}}, b"\0" * 4),
    "huge number": _file(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "not a number": _file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
    "negative offset": _file({"a": {**_ONE, "data_offsets": [-4, 0]}}, b"\0" * 4),
    "crossed offsets": _file({"a": {**_ONE, "data_offsets": [4, 0]}}, b"\0" * 4),
    "a hole": _file({"a": {**_ONE, "data_offsets": [4, 8]}}, b"\0" * 8),
    "an overlap": _file({"a": _ONE, "b": _ONE}, b"\0" * 4),
    "more bytes": _file({"a": _ONE}, b"\0" * 5),
    "quantised": _file({"a": {**_ONE, "dtype": "F4"}}, b"\0" * 4),
    "extra field": _file({"a": {**_ONE, "stride": [0]}}, b"\0" * 4),
    "no object": _file(b"[]"),
    "metadata of numbers": _file({"__metadata__": {"a": 1}, "a": _ONE}, b"\0" * 4),
    "two is no truth": _file({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
    "not UTF-8": _file(b'{"\xff":1}'),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_quickly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    path.write_bytes(HOSTILE[name])
    start = time.perf_counter()
    with pytest.raises(CheckpointCorrupt) as caught:
        read_tensors(path)
    assert time.perf_counter() - start < 0.5  # 50 ms on a quiet machine
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_hostile_headers_do_not_swell_in_memory(tmp_path: Path) -> None:
    for i, data in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}.safetensors").write_bytes(data)
    code = """
import resource, sys, pathlib
from sfumato.checkpoints.safe import read_tensors
from sfumato.core.errors import SfumatoError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    try:
        read_tensors(path)
    except SfumatoError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 64


def test_a_file_that_shrinks_while_read_is_an_error_not_a_crash(tmp_path: Path, monkeypatch) -> None:
    from sfumato.checkpoints import safe

    path = tmp_path / "s.safetensors"
    save_file({"a": torch.randn(1000), "b": torch.randn(1000)}, path)
    real = safe._header

    def shrink(file, where):
        header = real(file, where)
        os.truncate(path, 5000)
        return header

    monkeypatch.setattr(safe, "_header", shrink)
    with pytest.raises(CheckpointCorrupt, match="shrank"):
        read_tensors(path)


def test_non_finite_weights_are_counted(tmp_path: Path) -> None:
    tensors = {"good": torch.full((8,), 3e38), "half": torch.full((9,), 6e4).half(), "ids": torch.arange(3)}
    assert refuse_non_finite(tensors, "f", strict=True) == {}
    tensors["bad"] = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    tensors["eight"] = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    with pytest.warns(UserWarning, match=r"2 of 5 tensors: bad \(3\), eight \(1\)"):
        assert refuse_non_finite(tensors, "f") == {"bad": 3, "eight": 1}
    with pytest.raises(NotFinite, match="bad"):
        refuse_non_finite(tensors, "f", strict=True)


class _Payload:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _payloads(canary: Path) -> dict[str, object]:
    import builtins
    import runpy
    import webbrowser

    code = f"open({str(canary)!r}, 'w').write('x')"
    shell = f"touch {canary}"
    return {
        "os.system": _Payload(os.system, shell),
        "exec": _Payload(builtins.exec, code),
        "eval": _Payload(builtins.eval, code),
        "open": _Payload(builtins.open, str(canary), "w"),
        "popen": _Payload(subprocess.Popen, ["touch", str(canary)]),
        "check_output": _Payload(subprocess.check_output, ["touch", str(canary)]),
        "runpy": _Payload(runpy.run_path, str(canary)),
        "webbrowser": _Payload(webbrowser.open, "file:///"),
        "torch.load": _Payload(torch.load, str(canary)),
        "import": _Payload(builtins.__import__, "antigravity"),
    }


def test_50_pickle_payloads_are_refused_and_none_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    tried = 0
    for name, payload in _payloads(canary).items():
        raw = {p: pickle.dumps(payload, protocol=p) for p in (0, 2, 4)}
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("archive/data.pkl", raw[2])
        broken = zipped.getvalue().replace(b"data.pkl", b"data.pkI", 1)
        tarred = io.BytesIO()
        with tarfile.open(fileobj=tarred, mode="w") as archive:
            member = tarfile.TarInfo("data.pkl")
            member.size = len(raw[2])
            archive.addfile(member, io.BytesIO(raw[2]))
        for form, data in {
            "plain.safetensors": raw[4],
            "old.bin": raw[0],
            "legacy.pt": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + raw[2],
            "zip.ckpt": zipped.getvalue(),
            "broken.png": broken,
            "tar.safetensors": tarred.getvalue(),
        }.items():
            path = tmp_path / f"{name}-{form}"
            path.write_bytes(data)
            folder = tmp_path / f"{name}-{form}-model"
            folder.mkdir()
            (folder / "model.json").write_bytes(data)
            for entrance in (load, read_tensors, read_header):
                with pytest.raises(SfumatoError):
                    entrance(path)
                tried += 1
            with pytest.raises(SfumatoError):
                load(folder)
    assert tried >= 50
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("m.pt", b"PK\x03\x04" + b"\0" * 60, "zip archive"),
        ("m.safetensors", b"\x80\x02}q\x00." + b"\0" * 60, "pickle"),
        ("m.gguf", b"GGUF\x03\0\0\0" + b"\0" * 60, "GGUF"),
        ("m.onnx", b"\x08\x07\x12\x07pytorch\x1a\x052.0.1" + b"\0" * 60, "ONNX"),
        ("m.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "PNG"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 60, "HDF5"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        ("m.safetensors", b"<!DOCTYPE html><html><body>log in", "web page"),
        ("m.tar", b"a" * 257 + b"ustar\0" + b"\0" * 60, "tar archive"),
    ],
)
def test_foreign_files_are_called_by_their_name(name: str, data: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for entrance in (load, read_tensors):
        # Files of torch.save are read: of those a damaged one is told as that.
        error = CheckpointCorrupt if (kind, entrance) == ("zip archive", load) else InvalidInput
        with pytest.raises(error, match="zip" if error is CheckpointCorrupt else kind) as caught:
            entrance(path)
        assert caught.value.do


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InvalidInput):
            read_tensors(path)
    with pytest.raises(NotFound):
        read_tensors(tmp_path / "absent")
    with pytest.raises(SfumatoError):
        load("a\0b")
    with pytest.raises(NotFound):
        load(tmp_path / "absent")
