"""Trainer: the loop that turns a model, data and an objective into weights, and survives crashes."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.core.atomic import write_text
from sfumato.core.errors import NotFinite, NotFound, SfumatoError
from sfumato.core.noise import Noise, derive
from sfumato.data.item import Dataset
from sfumato.model import Model
from sfumato.registry import describe
from sfumato.training.cache import kept
from sfumato.training.changes import check_unchanged
from sfumato.training.checkpoint import CheckpointStore, Saved, SaveFailed
from sfumato.training.ema import EMA
from sfumato.training.heeding import first_heeded
from sfumato.training.loader import Loader
from sfumato.training.lock import only_writer
from sfumato.training.objectives.objective import TrainingObjective
from sfumato.training.optimizers import clip_gradients, flatten_state, restore_state, set_rate
from sfumato.training.order import DataOrder
from sfumato.training.parts import (
    LossModule,
    accelerator_for,
    agree,
    autocast,
    collate_of,
    evaluating,
    gather,
    load_weights,
    refuse_non_finite,
    seed_dropout,
    weights,
)
from sfumato.training.progress import Clock, Event, LossLog, Observe, Status, tensorboard
from sfumato.training.settings import Settings
from sfumato.training.signals import Interrupted, StopSignals
from sfumato.training.watch import Watch

SampleGrid = Callable[[Model, int], Any]
"""Draws a grid of pictures from fixed seeds: (model with averaged weights, step) → PIL image."""


class Trainer:
    """Trains a model on data under an objective, in a run directory that can be resumed at any time.

    Every random number is a pure function of (seed, step, row), so a run that was killed and resumed is bit
    for bit the run that was not, whatever the number of loading threads. Distributed runs are started by
    accelerate's launcher; each process computes its rows of every batch.

    Args:
        model: trained in place.
        data: what it is trained on.
        objective: the loss.
        settings: batch, steps, optimizer, averages, saving, ...
        directory: of the run: `checkpoints/`, `status.json`, `losses.jsonl`, `samples/`, at the end `model/`.
        observe: called with every Event, in the process of rank 0.
        held_out: data for the validation loss; None takes items of the training data.
        sample_grid: draws a grid every `settings.sample_every` steps.
        description: the run as plain data, compared on resume; None builds it from the parts.
        allow_change: resume although the run was started differently.
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        objective: TrainingObjective,
        settings: Settings,
        directory: Path,
        observe: Observe | None = None,
        *,
        held_out: Dataset | None = None,
        sample_grid: SampleGrid | None = None,
        description: dict[str, Any] | None = None,
        allow_change: bool = False,
    ) -> None:
        self.model, self.data, self.objective, self.settings = model, data, objective, settings
        self.directory = Path(directory)
        self.held_out, self.sample_grid, self.allow_change = held_out, sample_grid, allow_change
        self._observe = observe or (lambda event: None)
        self._accelerator = accelerator_for(settings)
        parts = {"model": model.describe(), "objective": describe(objective)}
        self.description = {
            **(description or {**parts, **json.loads(json.dumps(dataclasses.asdict(settings)))}),
            "data fingerprint": data.fingerprint(),
            "sfumato": __version__,
        }
        self.store = CheckpointStore(self.directory / "checkpoints", settings.saving.keep)
        self.step = 0
        self.skipped = 0
        self._in_a_row = 0
        self._failed_saves = 0
        self._elapsed = 0.0
        self._score: float | None = None

    def train(self) -> Model:
        """Train to the end, from the newest checkpoint if there is one; the model with averaged weights.

        Raises:
            RunLocked: another process writes to the directory.
            RunChanged: the run was started differently.
            Interrupted: stopped by a signal, after saving.
            NotFinite: too many steps in a row had non-finite gradients.
            SaveFailed: the disk refused too often.
        """
        main = self._accelerator.is_main_process
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            if main:
                stack.enter_context(only_writer(self.directory))
                self.store.clean()
            self._accelerator.wait_for_everyone()
            self._status = Status(self.directory) if main else None
            self._signals = stack.enter_context(StopSignals())
            try:
                self._set_up()
                where = (self.settings, self.directory, self._accelerator, partial(self._tell, "cached"))
                stack.enter_context(kept(self.model, self.data, self.objective, *where))
                self._log = stack.enter_context(LossLog(self.directory, self.step)) if main else None
                self._loop()
                return self._finish()
            except BaseException as error:
                if self._status:
                    state = "stopped" if isinstance(error, Interrupted) else "failed"
                    self._status.write(state, self._event("warning", message=str(error)), force=True)
                raise

    def _set_up(self) -> None:
        settings, accelerator = self.settings, self._accelerator
        self._module = accelerator.prepare(LossModule(self.model, self.objective, settings))
        named = dict(self.objective.parameters(self.model))
        self._names = {parameter: name for name, parameter in named.items()}
        self._parameters = list(named.values())
        self._optimizer = settings.optimizer.build(named)
        self.ema = EMA(named, settings.ema)
        bucket_of = getattr(self.data, "bucket_of", None)
        self.order = DataOrder(len(self.data), settings.batch, derive(settings.seed, "order"), bucket_of)
        rows = settings.batch // accelerator.num_processes
        first = rows * accelerator.process_index
        self._rows = slice(first, first + rows)
        collate = collate_of(self.data)
        self._loader = Loader(self.data, self.order, collate, settings.workers, self._rows, settings.most_bad)
        self._noise_seed = derive(settings.seed, "noise") >> 1
        self._dropout_seed = derive(settings.seed, "dropout") >> 1
        with suppress(NotFound):
            self._restore(self.store.load())
        if settings.validation.every:
            self._watch = Watch(
                self.data if self.held_out is None else self.held_out, settings, self._accelerator
            )
        self._clock = Clock(settings.steps, settings.minutes, settings.batch, self._elapsed)
        board = settings.tensorboard and accelerator.is_main_process
        self._board = tensorboard(self.directory / "tensorboard") if board else None
        self._emit(self._event("started"), force=True)

    def _loop(self) -> None:
        settings = self.settings
        self._saved_at = time.monotonic()
        batches = self._loader.batches(self.step, settings.accumulate)
        for part in self.model.modules().values():
            part.train()
        try:
            while not self._over():
                try:
                    parts = next(batches)
                except SfumatoError:
                    # Data that cannot be read must not cost what was learnt from the rest.
                    self._save()
                    raise
                self._emit(self._train_step(parts))
                if settings.validation.every and self.step % settings.validation.every == 0:
                    self._validate()
                if settings.sample_every and self.step % settings.sample_every == 0:
                    self._sample()
                minutes = settings.saving.minutes
                late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
                stop, late = agree(self._accelerator, self._signals.received is not None, late)
                if stop or late or self.step % settings.saving.every == 0:
                    self._save()
                if stop:
                    self._stop()
        finally:
            batches.close()

    def _train_step(self, parts: Sequence[Any]) -> Event:
        """One optimizer step on the parts of this process's rows; the step counts also when it is skipped."""
        settings = self.settings
        rate = settings.optimizer.rate_at(self.step, self._clock.fraction(self.step))
        set_rate(self._optimizer, rate)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        first = self._rows.start
        for number, batch in enumerate(parts):
            count = len(batch.image)
            # Seeds by the row of the whole batch: parts and processes cut the same numbers differently.
            noise = Noise(torch.arange(first, first + count) + self._noise_seed, self.step)
            seed_dropout(self._dropout_seed + (self.step << 20) + first, self._accelerator.device)
            first += count
            last = number == len(parts) - 1
            with nullcontext() if last else self._accelerator.no_sync(self._module):
                with autocast(self.model, self.settings.precision):
                    value, t, error = self._module(batch, noise)
                self._accelerator.backward(value.mean() / len(parts))
            rows.append((value.detach(), t.to(value.device), error))
        value, t, error = (
            gather(self._accelerator, torch.cat(tensors)) for tensors in zip(*rows, strict=True)
        )
        norm = clip_gradients(self._parameters, settings.optimizer.clip)
        loss = value.double().mean().item()
        fine = math.isfinite(norm) and math.isfinite(loss)
        if fine:
            self._optimizer.step()
            self.ema.update(settings.batch)
            self.objective.observe(self.model, t, error)
            self._in_a_row = 0
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if not fine:
            self._skip(loss, norm)
        if self._log:
            self._log.add(step=self.step, loss=loss, gradient_norm=norm, rate=rate)
        kind, words = ("step", "") if fine else ("skipped", "gradients were not finite; the step was skipped")
        speed = self._clock.tick()
        return self._event(
            kind, loss=loss, gradient_norm=norm, rate=rate, images_per_second=speed, message=words
        )

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row < self.settings.most_skipped:
            return
        items = list(self.order(self.step - 1).indices)
        good = self.store.steps()
        if self._status:
            note = {"step": self.step, "loss": str(loss), "gradient_norm": str(norm), "items": items}
            write_text(self.directory / "not_finite.json", json.dumps(note, indent=1))
        raise NotFinite(
            f"gradients were not finite in {self._in_a_row} steps in a row; items of the last: {items[:16]}",
            where=f"step {self.step}",
            do="last good checkpoint: " + (str(self.store.path(good[-1])) if good else "none yet"),
        )

    def _validate(self) -> None:
        losses, heeded = self._watch(self.model, self.objective, self.ema)
        self._score = losses.mean if math.isfinite(losses.mean) else None
        told = {} if heeded is None else {"heeded": dataclasses.asdict(heeded)}
        if self._log:
            self._log.add(step=self.step, bands=list(losses.losses), **told)
        words = "" if heeded is None else str(heeded)
        self._emit(self._event("validated", loss=losses.mean, bands=losses.losses, message=words))
        self._clock.pause()

    def _sample(self) -> None:
        if self.sample_grid is not None and self._status:
            with evaluating(self.model, self.ema):
                image = self.sample_grid(self.model, self.step)
            path = self.directory / "samples" / f"step_{self.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            image.save(path)
            self._emit(self._event("sampled", path=path))
        self._accelerator.wait_for_everyone()
        self._clock.pause()

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._status and self._log:
            refuse_non_finite({**dict(self.objective.parameters(self.model)), **self.ema.state_dict()})
            self._log.flush()
            try:
                path = self.store.save(self.step, self._tensors(), self._state(), self._score)
                self._failed_saves = 0
                self._emit(self._event("saved", path=path))
            except SaveFailed as error:
                self._failed_saves += 1
                if self._failed_saves >= self.settings.saving.failures:
                    raise
                self._tell("warning", str(error))
        self._score = None
        self._accelerator.wait_for_everyone()
        self._clock.pause()

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        groups = {
            "model": weights(self.model),
            "ema": self.ema.state_dict(),
            "optimizer": flatten_state(self._optimizer, self._names),
            "objective": self.objective.state_dict(),
        }
        return {name: group for name, group in groups.items() if group}

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.order.epoch(self.step),
            "seen": self.step * self.settings.batch,
            "elapsed": self._clock.elapsed,
            "skipped": self.skipped,
            "skipped_in_a_row": self._in_a_row,
            "ema_updates": self.ema.updates,
            "bad_items": self._loader.bad,
            "run": self.description,
            "threads": torch.get_num_threads(),
        }

    def _restore(self, saved: Saved) -> None:
        state = saved.state
        if not self.allow_change:
            check_unchanged(state["run"], json.loads(json.dumps(self.description)), str(self.directory))
        if state["threads"] != torch.get_num_threads():
            warnings.warn(
                f"resumed on {torch.get_num_threads()} threads, was on {state['threads']}: sums may round "
                "differently",
                stacklevel=3,
            )
        load_weights(self.model, saved.tensors["model"])
        restore_state(self._optimizer, self._names, saved.tensors.get("optimizer", {}))
        self.ema.load_state_dict(saved.tensors.get("ema", {}), state["ema_updates"])
        self.objective.load_state_dict(saved.tensors.get("objective", {}))
        self.step, self.skipped = saved.step, state["skipped"]
        self._in_a_row, self._elapsed = state["skipped_in_a_row"], state["elapsed"]
        self._loader.bad.update({int(index): reason for index, reason in state["bad_items"].items()})

    def _finish(self) -> Model:
        from sfumato.checkpoints import native

        if self.step not in self.store.steps():
            self._save()
        if len(self.ema):
            self.ema.copy_to()
        # As a model that is loaded lies, so that both make the same pictures.
        self._module.to(memory_format=torch.contiguous_format)
        for part in self.model.modules().values():
            part.eval()
        if self._status and self._log:
            self.model.card["training"] = {"steps": self.step, "images": self.step * self.settings.batch}
            self.model.card |= self.objective.finish(self.model, self.data)
            self._log.flush()
            if (first := first_heeded(LossLog.read(self.directory))) is not None:
                self.model.card["training"]["heeded from step"] = first
            native.save(self.model, self.directory / "model")
            self._emit(self._event("finished", path=self.directory / "model"), force=True)
        self._accelerator.wait_for_everyone()
        return self.model

    def _stop(self) -> None:
        assert self._signals.received is not None or self._accelerator.num_processes > 1
        raise Interrupted(
            self._signals.received or 15,
            where=f"step {self.step}",
            do=f"resume with: sfumato train --resume {self.directory}",
        )

    def _over(self) -> bool:
        if self.settings.steps is not None and self.step >= self.settings.steps:
            return True
        return self.settings.minutes is not None and agree(self._accelerator, self._clock.late)[0]

    def _event(self, kind: Any, **values: Any) -> Event:
        if hasattr(self, "_clock"):
            values |= {"fraction": self._clock.fraction(self.step), "eta": self._clock.eta(self.step)}
            values["epoch"] = self.order.epoch(self.step)
        return Event(kind, self.step, self.settings.steps, **values)

    def _tell(self, kind: Any, words: str) -> None:
        self._emit(self._event(kind, message=words))

    def _emit(self, event: Event, force: bool = False) -> None:
        if self._status:
            state = "finished" if event.kind == "finished" else "running"
            more = {
                "skipped": self.skipped,
                "bad_items": len(self._loader.bad) + len(getattr(self.data, "bad", ())),
                "directory": str(self.directory),
            }
            self._status.write(state, event, force or event.kind == "saved", **more)
            if self._board:
                self._board(event)
            self._observe(event)
