"""Signals, NaN, full disks, bad data: a run stops well or goes on well."""

import errno
import json
import os
import random
import signal
import time
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from training_toys import Blobs, toy_model

from sfumato.core.errors import InvalidInput, NotFinite, RunLocked, SfumatoError
from sfumato.training.checkpoint import CheckpointStore, SaveFailed
from sfumato.training.ema import Average
from sfumato.training.lock import only_writer
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.progress import LossLog
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer


def trainer(directory, observe=None, data=None, objective=None, **settings):
    saving = settings.pop("saving", Saving(every=1000))
    settings = {"batch": 8, "steps": 20, "ema": (Average(0.9),), "optimizer": AdamW(1e-2)} | settings
    return Trainer(
        toy_model(),
        Blobs() if data is None else data,
        objective or Denoising(),
        Settings(saving=saving, **settings),
        directory,
        observe,
    )


def child_training(directory, ready, data=None):
    """Train for ever in a child; its exit code is what the command line would give."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:

            def observe(event):
                if event.kind == "step":
                    os.write(ready, b".")

            trainer(directory, observe, data, steps=10**6).train()
        except SfumatoError as error:
            (directory / "said").write_text(str(error))
            code = error.exit_code
        finally:
            os._exit(code)
    return pid


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(tmp_path, signum, code):
    rng = random.Random(signum)
    steps = 0
    for _ in range(10):
        out, into = os.pipe()
        pid = child_training(tmp_path, into)
        os.close(into)
        os.read(out, 1)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signum)
        began = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        assert time.monotonic() - began < 5
        os.close(out)
        said = (tmp_path / "said").read_text()
        assert signal.Signals(signum).name in said
        assert f"sfumato train --resume {tmp_path}" in said
        store = CheckpointStore(tmp_path / "checkpoints")
        saved = store.load()
        assert saved.step > steps
        steps = saved.step
        assert store.verify()[f"step_{steps:08d}"] == "complete"
        assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
        assert len(LossLog.read(tmp_path)) == steps


@dataclass(frozen=True)
class Slow(Blobs):
    """Takes its time for each item."""

    def load(self, index, seed):
        time.sleep(0.5)
        return super().load(index, seed)


def test_a_second_interrupt_ends_it_now(tmp_path):
    out, into = os.pipe()
    pid = child_training(tmp_path, into, Slow())
    os.close(into)
    while not (tmp_path / "status.json").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert time.monotonic() - began < 1
    os.close(out)
    with only_writer(tmp_path):
        pass


@dataclass(frozen=True)
class Poisoned(Denoising):
    """Not finite from one step to another."""

    start: int = 0
    end: int = 0
    value: float = float("nan")

    def loss(self, model, batch, noise):
        loss = super().loss(model, batch, noise)
        return replace(loss, value=loss.value * self.value) if self.start <= noise.step < self.end else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_single_bad_steps_are_skipped_and_counted(tmp_path, value):
    events = []
    run = trainer(tmp_path, events.append, objective=Poisoned(start=5, end=8, value=value))
    run.train()
    assert [e.step for e in events if e.kind == "skipped"] == [6, 7, 8]
    assert run.skipped == 3
    saved = run.store.load()
    assert saved.state["ema_updates"] == 17
    assert all(torch.isfinite(t).all() for group in saved.tensors.values() for t in group.values())
    assert json.loads((tmp_path / "status.json").read_text())["skipped"] == 3


def test_a_run_that_stays_bad_stops_within_ten_steps(tmp_path):
    run = trainer(tmp_path, objective=Poisoned(start=7, end=99), steps=50, saving=Saving(every=5))
    with pytest.raises(NotFinite, match="10 steps in a row") as caught:
        run.train()
    assert run.step <= 7 + 10
    assert "step_000000" in str(caught.value)
    saved = run.store.load()
    assert all(torch.isfinite(t).all() for group in saved.tensors.values() for t in group.values())
    note = json.loads((tmp_path / "not_finite.json").read_text())
    assert note["items"] == list(run.order(note["step"] - 1).indices)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def break_weights(event):
        if event.kind == "step" and event.step == 7:
            with torch.no_grad():
                next(run.model.denoiser.parameters())[0, 0] = float("inf")

    run = trainer(tmp_path, break_weights, saving=Saving(every=5), most_skipped=100)
    with pytest.raises(NotFinite, match="not saved"):
        run.train()
    assert run.store.load().step == 5


def test_a_full_disk_warns_and_then_stops(tmp_path):
    events = []
    run = trainer(tmp_path, events.append, saving=Saving(every=2, failures=3))
    failing = set()

    def fault(point):
        if point.startswith("write ema") and run.step in failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    run.store._fault = fault
    failing.update({4, 6})
    run.train()
    assert [e.step for e in events if e.kind == "warning"] == [4, 6]
    assert run.store.load().step == 20

    again = trainer(tmp_path / "again", saving=Saving(every=2, failures=3))
    again.store._fault = lambda point: fault(point) if again.step > 4 else None
    failing.update(range(100))
    run = again
    with pytest.raises(SaveFailed, match="No space left"):
        again.train()
    assert again.step == 10
    assert again.store.load().step == 4
    assert not list((tmp_path / "again" / "checkpoints").glob(".*"))


def test_bad_items_are_replaced_counted_and_listed(tmp_path):
    data = Blobs(count=100, bad=(17, 23))
    run = trainer(tmp_path, data=data, steps=30)
    run.train()
    assert set(run.store.load().state["bad_items"]) == {"17", "23"}
    assert "broken" in run.store.load().state["bad_items"]["17"]


def test_too_many_bad_items_stop_the_run_after_saving(tmp_path):
    run = trainer(tmp_path, data=Blobs(count=100, bad=tuple(range(0, 60, 10))), steps=100, batch=2)
    with pytest.raises(InvalidInput, match="6 of 100 items cannot be read, such as item"):
        run.train()
    assert run.step > 0
    assert run.store.load().step == run.step


def test_no_data_and_odd_batches_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="empty"):
        trainer(tmp_path, data=Blobs(count=0)).train()
    with pytest.raises(InvalidInput, match="parts"):
        trainer(tmp_path, batch=8, accumulate=3)


def test_two_runs_in_one_directory(tmp_path):
    with only_writer(tmp_path), pytest.raises(RunLocked, match="held by pid"):
        trainer(tmp_path).train()


def test_a_time_budget_ends_the_run_and_drives_the_schedule(tmp_path):
    events = []
    run = trainer(tmp_path, events.append, steps=None, minutes=1 / 60, optimizer=AdamW(1e-2, decay="linear"))
    began = time.monotonic()
    run.train()
    assert 1 <= time.monotonic() - began < 4
    rates = [e.rate for e in events if e.kind == "step"]
    assert rates[0] > 0.008
    assert rates[-1] < 0.002
    assert rates == sorted(rates, reverse=True)
    assert run.store.load().step == run.step == len(rates)


def test_a_run_leaves_no_trace_in_the_process(tmp_path):
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), torch.get_rng_state())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path, steps=2).train()
    assert signal.getsignal(signal.SIGINT) is before[0]
    assert signal.getsignal(signal.SIGTERM) is before[1]
    toy = toy_model  # constructing the toy seeds torch by itself; the run must not add to it
    toy()
    state = torch.get_rng_state()
    run = trainer(tmp_path / "again", steps=2)
    toy()
    run.train()
    assert torch.equal(torch.get_rng_state(), state)
