"""Training a run from its description: what the command line and the demo call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfumato.core.noise import derive
from sfumato.data.item import Dataset, Item
from sfumato.model import Model
from sfumato.training.parts import collate_of
from sfumato.training.progress import Observe
from sfumato.training.run_file import Run
from sfumato.training.trainer import Trainer
from sfumato.training.validation import fixed_items

SampleGrid = Callable[[Model, int, Sequence[Item]], Any]
"""Draws pictures from fixed seeds, told as fixed items are: (model with averaged weights, step, items) → PIL
image.
"""
_ITEMS = 8


def train(
    run: Run,
    directory: str | Path,
    observe: Observe | None = None,
    *,
    sample_grid: SampleGrid | None = None,
    allow_change: bool = False,
) -> Model:
    """Train a run in a directory, from its newest checkpoint if there is one; the finished model.

    The directory then holds `run.yaml`, `model/` (the native checkpoint with averaged weights),
    `losses.jsonl`, `loss.png`, `status.json`, `checkpoints/` and `samples/`.

    Raises:
        What Trainer.train raises, and InvalidInput for settings that make no sense.
    """
    from sfumato.training.plot import plot_run

    directory = Path(directory)
    model, data, held_out = run.build()
    draw = _drawing(run, data if held_out is None else held_out, sample_grid)
    trainer = Trainer(
        model,
        data,
        run.build_objective(),
        run,
        directory,
        observe,
        held_out=held_out,
        sample_grid=draw,
        description=run.describe(),
        allow_change=allow_change,
    )
    directory.mkdir(parents=True, exist_ok=True)
    run.write(directory / "run.yaml")
    model = trainer.train()
    plot_run(directory, directory / "loss.png")
    return model


def _drawing(run: Run, data: Dataset, grid: SampleGrid | None) -> Callable[[Model, int], Any] | None:
    """What draws the samples, told as the same few items every time."""
    if grid is None or not run.sample_every:
        return None
    items = fixed_items(data, derive(run.seed, "samples"), _ITEMS, 1, _ITEMS, collate_of(data)).items
    return lambda model, step: grid(model, step, items)
