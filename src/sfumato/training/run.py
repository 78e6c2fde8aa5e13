"""Training a run from its description: what the command line and the demo call."""

from __future__ import annotations

from pathlib import Path

from sfumato.model import Model
from sfumato.training.progress import Observe
from sfumato.training.run_file import Run
from sfumato.training.trainer import SampleGrid, Trainer


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
    data = run.build_data()
    trainer = Trainer(
        run.build_model(data),
        data,
        run.build_objective(),
        run,
        directory,
        observe,
        held_out=run.build_held_out(),
        sample_grid=sample_grid,
        description=run.describe(),
        allow_change=allow_change,
    )
    directory.mkdir(parents=True, exist_ok=True)
    run.write(directory / "run.yaml")
    model = trainer.train()
    plot_run(directory, directory / "loss.png")
    return model
