"""Files of torch.save: tensors and plain data come back exactly, all else is refused, nothing is ever run."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.checkpoints.load import load
from sfumato.checkpoints.torch_file import read_torch, verify
from sfumato.checkpoints.weights import find, look, take
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, NotFound, SfumatoError
from sfumato.interfaces.looking import inspect


def _held() -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {
        "model": network.state_dict(),
        "ema": {name: tensor.clone() * 2 for name, tensor in network.state_dict().items()},
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-4, name="xl"),
        "step": 7,
        "half": torch.randn(5).half(),
        "turned": torch.randn(3, 4).t(),
        "parameter": network[0].weight,
        "list": [torch.arange(4), None, True, 2.5, -(2**40)],
    }


def _same(a: Any, b: Any) -> bool:
    """Equal, tensor for tensor and bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_what_is_saved_is_what_is_read(tmp_path: Path, zipped: bool, mapped: bool) -> None:
    path = tmp_path / "c.pt"
    torch.save(_held(), path, _use_new_zipfile_serialization=zipped)
    assert _same(read_torch(path, mapped), _held())


def test_state_dicts_are_found_and_the_averaged_one_is_first(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(_held(), path)
    tables = look(path)
    assert [table.place for table in tables][:2] == ["ema", ""]
    assert {table.place: table.averaged for table in tables}["model"] is False
    assert tables[0].shapes["0.weight"] == (4, 3)
    found = find(path, ["0.weight", "1.running_mean"])
    assert found is not None
    assert found.place == "ema"
    assert _same(take(path, found), _held()["ema"])
    assert find(path, ["9.weight"]) is None


def test_the_prefix_of_distributed_training_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    plain = _held()["model"]
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in plain.items()}}, path)
    found = find(path, plain)
    assert found is not None
    assert _same(take(path, found), dict(plain))


def test_what_is_taken_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(_held()["model"], path)
    tensors = take(path, look(path)[0])
    path.write_bytes(b"")
    assert _same(tensors, dict(_held()["model"]))


class _Payload:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _zip(record: bytes, **more: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", record)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        for name, data in more.items():
            archive.writestr(f"archive/data/{name.removeprefix('d')}", data)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_would_run_is_named_and_not_run(tmp_path: Path, form: str, protocol: int) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    record = pickle.dumps({"weight": _Payload(os.system, f"touch {canary}")}, protocol=protocol)
    old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + record
    path.write_bytes(_zip(record) if form == "zip" else old)
    for entrance in (read_torch, load, look):
        with pytest.raises(InvalidInput, match="more than tensors and could run code") as caught:
            entrance(path)
        assert caught.value.do
        assert protocol != 2 or "posix.system" in str(caught.value)
    assert "more than tensors and could run code" in inspect(path)["what"]
    assert not canary.exists()


def test_a_checkpoint_with_an_object_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    torch.save({"state_dict": _held()["model"], "paths": collections.deque([1])}, path)
    with pytest.raises(InvalidInput, match=r"it holds collections\.deque, which is more than tensors"):
        read_torch(path)


def _nest(depth: int) -> bytes:
    """{(((..),),): 1}: hashing it would exhaust the stack."""
    return b"\x80\x02}N" + b"\x85" * depth + b"K\x01s."


HOSTILE = {
    "a key that is a nest of tuples": _nest(200_000),
    "a dictionary from a list with such a key": b"\x80\x02ccollections\nOrderedDict\n](N"
    + b"\x85" * 10
    + b"K\x01\x86ea\x85R.",
    "a thousand gigabytes of zeros": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "a tensor class called": b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\0\0\0\0\0\x01\x85R.",
    "a storage called": b"\x80\x02ctorch\nFloatStorage\n\x8a\x05\0\0\0\0\x01\x85R.",
    "a class inside a state": b"\x80\x02ccollections\nOrderedDict\n)R]b.",
    "an empty stack": b"\x80\x020R.",
    "no end": b"\x80\x02}",
    "a memo nobody made": b"\x80\x02h\x07.",
    "nothing": b"",
    "an old class": b"(iposix\nsystem\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lists_of_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / "h.pt"
    path.write_bytes(_zip(HOSTILE[name]))
    with pytest.raises((CheckpointCorrupt, InvalidInput)) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def _tensor_of(shape: tuple[int, ...], stride: tuple[int, ...], numel: int, data: bytes) -> bytes:
    """A file of one tensor, as it is claimed to be."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Storage) else None

    stream = io.BytesIO()
    rebuilt = _Payload(
        torch._utils._rebuild_tensor_v2, Storage(), 0, shape, stride, False, collections.OrderedDict()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Pickler(stream, protocol=2).dump({"weight": rebuilt})
    return _zip(stream.getvalue(), d0=data)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("shape", "stride", "numel", "good"),
    [
        ((2, 3), (3, 1), 6, True),
        ((2, 3), (0, 0), 6, True),
        ((2, 3), (0, 0), 1, False),
        ((2**20, 2**20), (0, 0), 6, False),
        ((2**40,), (1,), 6, False),
        ((2**31, 2**31, 2**31), (1, 1, 1), 6, False),
        ((-1,), (1,), 6, False),
        ((2, 3), (3, 1), 7, False),
        ((2, 3), (3, 1), 2**50, False),
        ((7,), (1,), 6, False),
        ((7,), (1,), 7, False),  # the seventh would be read from what lies behind the record
    ],
)
def test_tensors_that_claim_what_is_not_there(
    tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...], numel: int, good: bool, mapped: bool
) -> None:
    path = tmp_path / "t.pt"
    path.write_bytes(_tensor_of(shape, stride, numel, struct.pack("<6f", *range(6))))
    if good:
        held = read_torch(path, mapped)["weight"]
        assert held.flatten().tolist() == (list(range(6)) if stride[0] else [0.0] * 6)
        return
    with pytest.raises((CheckpointCorrupt, InvalidInput)):
        read_torch(path, mapped)


def test_numbers_of_an_old_file_that_are_not_there_are_no_memory_asked_for(tmp_path: Path) -> None:
    """Before 1.6, what a tensor claims is set aside before it is read: 2^40 numbers would be 4 TiB."""
    path = tmp_path / "o.pt"
    torch.save({"weight": torch.zeros(2**10)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"M\x00\x04N") == 1
    # A two-byte count becomes one of six bytes.
    path.write_bytes(data.replace(b"M\x00\x04N", b"\x8a\x06\0\0\0\0\0\x01N"))
    with pytest.raises(CheckpointCorrupt, match="tensors of 4,398,046,511,104 bytes in"):
        read_torch(path)


def test_a_record_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    """PyTorch skips it, and would give whatever the memory held."""
    path = tmp_path / "f.pt"
    torch.save({"weight": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        held = [(each, archive.read(each)) for each in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in held:
            each.external_attr = 0x10 if each.filename.endswith("/data/0") else 0
            archive.writestr(each, data)
    with pytest.raises(CheckpointCorrupt, match="is a folder"):
        read_torch(path)


def _mutant(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    kind = draw.randrange(6)
    if kind == 0:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    elif kind == 2:
        data[draw.randrange(len(data))] = draw.randrange(256)
        data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 3:  # a run of bytes in the central directory, at the end
        start = len(data) - draw.randrange(1, 1200)
        data[start : start + 4] = draw.randbytes(4)
    elif kind == 4:
        a, b = sorted(draw.sample(range(len(data)), 2))
        data[a:b] = data[a:b][::-1]
    else:
        place = draw.randrange(len(data))
        data[place:place] = draw.randbytes(draw.randrange(1, 64))
    return bytes(data)


def test_300_mutants_are_refused_or_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(_held(), path)
    whole, expected = path.read_bytes(), _held()
    draw = random.Random(11)
    refused = []
    for _ in range(300):
        path.write_bytes(_mutant(whole, draw))
        try:
            found = read_torch(path)
        except SfumatoError as error:
            refused.append(str(error))
        else:
            assert _same(found, expected), "read something else than was saved"
            verify(path)
            assert _same(read_torch(path, mapped=True), expected)
    assert 150 < len(refused) < 300
    assert all(str(path) in said for said in refused)


def test_mutated_lists_with_a_fitting_checksum_are_typed_too(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(_held(), path)
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    draw = random.Random(5)
    refused = 0
    for _ in range(200):
        record = bytearray(records["data.pkl"])
        for _ in range(draw.randrange(1, 4)):
            record[draw.randrange(len(record))] = draw.randrange(256)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in {**records, "data.pkl": bytes(record)}.items():
                archive.writestr(f"m/{name}", data)
        path.write_bytes(stream.getvalue())
        try:
            read_torch(path, mapped=True)
        except SfumatoError:
            refused += 1
    assert refused > 100


def test_truncated_downloads_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save(_held()["model"], path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointCorrupt, match="damaged or cut short"):
            load(path)


def test_a_bit_that_fell_over_in_a_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    weights = {"weight": torch.randn(1000)}
    torch.save(weights, path)
    data = bytearray(path.read_bytes())
    place = data.find(bytes(weights["weight"].view(torch.uint8)[400:408].tolist()))
    data[place] ^= 4
    path.write_bytes(data)
    for entrance in (read_torch, verify, lambda p: take(p, look(p)[0])):
        with pytest.raises(CheckpointCorrupt, match="CRC"):
            entrance(path)


def test_other_archives_and_files_are_called_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", b"<w/>")
    path.write_bytes(stream.getvalue())
    with pytest.raises(InvalidInput, match="zip archive, but no file of torch"):
        read_torch(path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    path.write_bytes(stream.getvalue())
    with pytest.raises(InvalidInput, match="compressed"):
        read_torch(path)
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(InvalidInput, match="TorchScript program"):
        load(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60))
    with pytest.raises(InvalidInput, match="PNG"):
        read_torch(path)
    with pytest.raises(NotFound):
        read_torch(tmp_path / "absent.pt")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_torch(tmp_path)


def test_weights_of_no_known_network_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, path)
    with pytest.raises(InvalidInput, match=r"no known network: 2 tensors, fc\.weight, fc\.bias .*dit"):
        load(path)
