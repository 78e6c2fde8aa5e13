"""The native format: what is saved is what is loaded, and anything else is an error that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints import native
from sfumato.checkpoints.load import formats, load
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, NotFinite, NotFound
from sfumato.model import Model
from sfumato.registry import build, names


def _state(model: Model) -> dict[str, torch.Tensor]:
    return {f"{p}.{n}": t for p, m in model.modules().items() for n, t in m.state_dict().items()}


def _edit(folder: Path, *path: str, **values: object) -> None:
    file = folder / "model.json"
    record = json.loads(file.read_text())
    place = record
    for key in path:
        place = place[key]
    place.update(values)
    file.write_text(json.dumps(record))


def test_round_trip_is_exact_and_says_the_hash(tiny: Model, tmp_path: Path) -> None:
    digest = native.save(tiny, tmp_path / "m")
    back = load(tmp_path / "m")
    assert back.describe() == tiny.describe()
    assert back.card == {**tiny.card, "hash": digest, "source": str(tmp_path / "m")}
    assert native.hash_of(tmp_path / "m" / "model.safetensors") == digest
    before, after = _state(tiny), _state(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not back.denoiser.network.training


@pytest.mark.parametrize("process", names("process"))
def test_a_model_of_any_process_is_loaded_as_it_was_saved(process: str, tiny: Model, tmp_path: Path) -> None:
    description = {**tiny.describe(), "process": {"name": process}}
    native.save(Model.from_description(description), tmp_path / "m")
    back = load(tmp_path / "m").denoiser.process
    assert back(0.3) == build("process", process)(0.3)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_element_types_are_kept(tiny: Model, tmp_path: Path, dtype: torch.dtype) -> None:
    native.save(tiny.to(dtype), tmp_path)
    assert {t.dtype for t in _state(load(tmp_path)).values()} == {dtype}
    assert {t.dtype for t in _state(load(tmp_path, dtype=torch.float32)).values()} == {torch.float32}


def test_saving_again_replaces_at_the_rename_of_model_json(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native.save(tiny, tmp_path)
    before = {name: tensor.clone() for name, tensor in _state(tiny).items()}
    with torch.no_grad():
        tiny.denoiser.network.leave.bias += 1

    def full(*arguments: object) -> None:
        raise OSError(28, "disk full")

    # A crash between the two files leaves the old model whole.
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", full)
        with pytest.raises(InvalidInput, match="disk full"):
            native.save(tiny, tmp_path)
    assert load(tmp_path).card["hash"] == first
    assert all(torch.equal(before[name], tensor) for name, tensor in _state(load(tmp_path)).items())


def test_saving_many_times_leaves_two_files(tiny: Model, tmp_path: Path) -> None:
    digests = set()
    for _ in range(4):
        with torch.no_grad():
            tiny.denoiser.network.leave.bias += 1
        digests.add(native.save(tiny, tmp_path))
        assert load(tmp_path).card["hash"] in digests
        assert len(list(tmp_path.iterdir())) == 2
    assert len(digests) == 4


def test_whoever_may_read_files_here_may_read_a_model(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    native.save(tiny, tmp_path / "m")
    usual = (tmp_path / "usual").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "m").iterdir()} == {usual}


def test_a_flipped_bit_is_told_by_the_hash(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointCorrupt, match=r"sha256 expected .* got"):
        load(tmp_path)


def test_weights_of_another_network_are_refused_before_they_are_read(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path)
    _edit(tmp_path, "model", "network", width=16)
    with pytest.raises(KeyMismatch, match=r"network\.enter\.weight \[16, 3, 3, 3\], got \[8, 3, 3, 3\]"):
        load(tmp_path)
    # A description cannot ask for memory that its weights do not have.
    _edit(tmp_path, "model", "network", width=2**40)
    with pytest.raises((KeyMismatch, InvalidInput)):
        load(tmp_path)


def test_versions(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path)
    _edit(tmp_path, version=2, sfumato="9.0")
    with pytest.raises(InvalidInput, match=r"version 2, written by sfumato 9\.0.*up to version 1.*upgrade"):
        load(tmp_path)
    _edit(tmp_path, version=0)
    with pytest.raises(CheckpointCorrupt):
        load(tmp_path)


def test_unknown_and_missing_keys_name_the_nearest(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path)
    whole = (tmp_path / "model.json").read_text()
    _edit(tmp_path, "model", netwrok=1)
    with pytest.raises(InvalidInput, match=r"'model\.netwrok' \(did you mean network"):
        load(tmp_path)
    (tmp_path / "model.json").write_text(whole)
    _edit(tmp_path, "model", process={"name": "vpp"})
    with pytest.raises(InvalidInput, match="did you mean vp"):
        load(tmp_path)
    (tmp_path / "model.json").write_text('{"format": "sfumato", "version": 1}')
    with pytest.raises(CheckpointCorrupt, match="lacks sfumato, model, card, weights"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.pt", 3])
def test_weights_lie_in_the_folder_itself(tiny: Model, tmp_path: Path, name: object) -> None:
    native.save(tiny, tmp_path / "m")
    _edit(tmp_path / "m", "weights", file=name)
    with pytest.raises(CheckpointCorrupt, match="not a plain file name"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a":' * 100_000, '"sfumato"', '{"format": "sfumato"}', "\xff"]
)
def test_nonsense_in_model_json_is_typed(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text, "latin-1")
    with pytest.raises((CheckpointCorrupt, InvalidInput)):
        load(tmp_path)
    with pytest.raises(CheckpointCorrupt):
        native.read(tmp_path)


def test_absent_and_unfinished_models(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        native.read(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="no model of a known format"):
        load(tmp_path)
    native.save(tiny, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFound, match="weights are missing"):
        load(tmp_path)


def test_non_finite_weights(tiny: Model, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.denoiser.network.leave.bias[0] = float("nan")
    native.save(tiny, tmp_path)
    with pytest.raises(NotFinite, match=r"network\.leave\.bias \(1\)"):
        load(tmp_path)
    with pytest.warns(UserWarning, match=r"network\.leave\.bias"):
        load(tmp_path, strict=False)


def test_the_folder_is_the_registry_of_formats() -> None:
    assert formats()["native"] is native
    assert "safe" not in formats()


def test_a_run_folder_stands_for_its_model(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path / "model")
    assert load(tmp_path).card["source"] == str(tmp_path / "model")
