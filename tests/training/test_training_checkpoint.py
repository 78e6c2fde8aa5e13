"""Checkpoints survive kills at any instant, full disks and damage; pruning never loses the last one."""

import errno
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.core.errors import CheckpointCorrupt, NotFound
from sfumato.training import checkpoint
from sfumato.training.checkpoint import CheckpointStore, Keep, SaveFailed


def tensors(step, size=2**18):
    return {
        "model": {"a": torch.full((size,), float(step)), "b": torch.arange(4) + step},
        "ema": {"0.a": torch.full((size,), float(-step))},
        "optimizer": {"exp_avg.a": torch.full((size,), step + 0.5)},
    }


def check(saved):
    """A checkpoint is whole: every tensor and the state are of the same step."""
    for group, values in tensors(saved.step, saved.tensors["ema"]["0.a"].numel()).items():
        for name, value in values.items():
            assert torch.equal(saved.tensors[group][name], value)
    assert saved.state["at"] == saved.step


def fork(work):
    """Run work in a child, which never returns into pytest."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def test_two_hundred_kills_during_saves_lose_nothing(tmp_path):
    rng = random.Random(0)
    newest, lost, mid_save, saves = 0, 0, 0, 0
    CheckpointStore(tmp_path).save(0, tensors(0), {"at": 0})
    for _ in range(200):
        told, tell = os.pipe()

        def work(tell=tell, start=newest):
            store, step = CheckpointStore(tmp_path, Keep(last=2, best=False)), start
            while True:
                step += 1
                store.save(step, tensors(step), {"at": step})
                os.write(tell, step.to_bytes(8, "little"))

        pid = fork(work)
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(tell)
        said = b""
        while chunk := os.read(told, 65536):
            said += chunk
        os.close(told)
        acknowledged = int.from_bytes(said[-8:], "little") if said else newest
        saves += len(said) // 8
        mid_save += bool(list(tmp_path.glob(".tmp-*")))
        store = CheckpointStore(tmp_path)
        saved = store.load()
        check(saved)
        lost += saved.step < acknowledged
        newest = saved.step
        store.clean()
    assert lost == 0
    assert mid_save > 50, "the kills must hit saves, not pauses between them"
    assert saves > 50


def all_points(tmp_path):
    points = []
    store = CheckpointStore(tmp_path / "points", Keep(last=1, best=False), points.append)
    store.save(1, tensors(1, 8), {"at": 1})
    points.clear()
    store.save(2, tensors(2, 8), {"at": 2})
    return points


def test_a_kill_at_every_point_of_a_save(tmp_path):
    points = all_points(tmp_path)
    assert len(points) >= 12
    assert points[-2:] == ["prune", "delete"]
    for number, point in enumerate(points):
        folder = tmp_path / str(number)
        CheckpointStore(folder).save(1, tensors(1, 8), {"at": 1})

        def work(folder=folder, point=point):
            def die(at):
                if at == point:
                    os.kill(os.getpid(), signal.SIGKILL)

            CheckpointStore(folder, Keep(last=1, best=False), die).save(2, tensors(2, 8), {"at": 2})

        os.waitpid(fork(work), 0)
        store = CheckpointStore(folder)
        saved = store.load()
        check(saved)
        assert saved.step == (2 if number > points.index("rename") else 1)
        store.clean()
        assert all(state == "complete" for state in store.verify().values())
        assert not list(folder.glob(".*"))
        # And life goes on.
        CheckpointStore(folder, Keep(last=1, best=False)).save(3, tensors(3, 8), {"at": 3})
        assert CheckpointStore(folder).steps() == [3]


def test_a_full_disk_at_every_point_keeps_the_last_good_one(tmp_path):
    points = all_points(tmp_path)
    for number, point in enumerate(points[: points.index("rename") + 1]):
        folder = tmp_path / str(number)
        CheckpointStore(folder).save(1, tensors(1, 8), {"at": 1})

        def full(at, point=point):
            if at == point:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(SaveFailed, match="No space left"):
            CheckpointStore(folder, fault=full).save(2, tensors(2, 8), {"at": 2})
        assert [p.name for p in folder.iterdir()] == ["step_00000001"]
        check(CheckpointStore(folder).load())


def test_space_is_looked_at_before_writing(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    size = sum(t.numel() * t.element_size() for g in tensors(1).values() for t in g.values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=2 * size - 1))
    with pytest.raises(SaveFailed, match="MiB are free"):
        store.save(1, tensors(1), {"at": 1})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=2 * size))
    store.save(1, tensors(1), {"at": 1})


def damage(folder, how):
    model = folder / "model.safetensors"
    if how == "truncated":
        os.truncate(model, model.stat().st_size // 2)
    elif how == "bit":
        content = bytearray(model.read_bytes())
        content[-3] ^= 16
        model.write_bytes(content)
    elif how == "missing file":
        model.unlink()
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "manifest cut":
        os.truncate(folder / "manifest.json", 40)
    elif how == "manifest of another kind":
        (folder / "manifest.json").write_text(json.dumps(["no", "manifest"]))
    elif how == "state":
        (folder / "state.json").write_text("{}")


HOWS = [
    "truncated",
    "bit",
    "missing file",
    "no manifest",
    "manifest cut",
    "manifest of another kind",
    "state",
]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, how):
    store = CheckpointStore(tmp_path, Keep(last=5))
    for step in (1, 2, 3):
        store.save(step, tensors(step, 64), {"at": step})
    damage(store.path(3), how)
    assert store.verify()["step_00000003"] != "complete"
    with pytest.warns(UserWarning, match="falling back"):
        saved = store.load()
    assert saved.step == 2
    check(saved)
    with pytest.raises(CheckpointCorrupt):
        store.load(3)
    # The damaged one is replaced when the run gets there again.
    store.save(3, tensors(3, 64), {"at": 3})
    assert store.verify()["step_00000003"] == "complete"


def test_nothing_and_nothing_but_damage(tmp_path):
    with pytest.raises(NotFound):
        CheckpointStore(tmp_path).load()
    store = CheckpointStore(tmp_path)
    store.save(1, tensors(1, 8), {"at": 1})
    damage(store.path(1), "bit")
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(CheckpointCorrupt, match="all 1 checkpoints"),
    ):
        store.load()


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    store.save(1, tensors(1, 8), {"at": 1})
    manifest = store.path(1) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["../../outside.safetensors"] = content["files"]["model.safetensors"]
    shutil.copy(store.path(1) / "model.safetensors", tmp_path / "outside.safetensors")
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointCorrupt):
        store.load(1)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    saves=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([None, 0.1, 0.2, 0.3])), min_size=1, max_size=8
    ),
    keep=st.builds(Keep, last=st.integers(0, 3), every=st.integers(0, 4), best=st.booleans()),
    broken=st.sets(st.integers(0, 7), max_size=2),
)
def test_pruning_keeps_what_it_promises(tmp_path_factory, saves, keep, broken):
    store = Bare(tmp_path_factory.getbasetemp() / "prune", keep)
    step, complete, scores = 0, [], {}
    for number, (gap, score) in enumerate(saves):
        step += gap
        store.put(step, score, whole=number not in broken)
        if number not in broken:
            complete.append(step)
            scores[step] = score
        store.prune()
        left = store.steps()
        if complete:
            assert left, "the only complete checkpoint is never deleted"
            assert left[-1] == complete[-1]
        assert set(complete[-keep.last :] if keep.last else ()) <= set(left)
        if keep.every:
            assert {s for s in complete if s % keep.every == 0} <= set(left)
        if keep.best and (rated := {s: v for s, v in scores.items() if v is not None}):
            best = min(rated.values())
            assert best in {scores[s] for s in left}
        allowed = max(keep.last, 1) + len([s for s in left if keep.every and s % keep.every == 0]) + keep.best
        assert len(left) <= allowed
    shutil.rmtree(store.directory)


class Bare(CheckpointStore):
    """Checkpoints of a state file alone, written without waiting for the disk: for a thousand schedules."""

    def put(self, step, score, whole):
        path = self.path(step)
        path.mkdir(parents=True)
        (path / "state.json").write_text("{}")
        files = {"state.json": {"size": 2, "sha256": checkpoint.file_hash(path / "state.json")}}
        if whole:
            content = {"step": step, "score": score, "files": files}
            (path / "manifest.json").write_text(json.dumps(content))


def test_shared_and_strided_tensors_come_back(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    group = {"whole": base, "row": base[1], "turned": base.t(), "again": base, "half": base.bfloat16()}
    store = CheckpointStore(tmp_path)
    store.save(1, {"model": group}, {"at": 1})
    back = store.load().tensors["model"]
    for name, value in group.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == value.dtype
