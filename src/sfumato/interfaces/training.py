"""The command that trains: the plan of a run, and its progress while it goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sfumato.core.errors import InvalidInput
from sfumato.generation.memory import available
from sfumato.interfaces.samples import samples
from sfumato.training import Event, Run, read
from sfumato.training import train as train_run
from sfumato.training.plan import plan as measure


def train(
    run_file: Path | None,
    out: Path | None,
    overrides: Sequence[str],
    dry_run: bool,
    resume: Path | None,
    allow_change: bool,
) -> dict[str, Any]:
    """Train, resume, or tell the plan; what is said at the end: the plan, or where the model is.

    Args:
        run_file: YAML; not needed to resume.
        out: the run's folder; runs/<name of the run file> if not said.
        overrides: such as "optimizer.rate=1e-3".
        dry_run: only tell the plan.
        resume: the folder of a run to go on with.
        allow_change: resume although data, settings or code changed.

    Raises:
        InvalidInput: neither or both of a run file and a run to resume, or a run is there already.
        What sfumato.training.train raises.
    """
    if (run_file is None) == (resume is None):
        raise InvalidInput("give a run file, or --resume with the folder of a run", where="train")
    folder = resume or out or Path("runs") / Path(str(run_file)).stem
    run = read(run_file or folder / "run.yaml", overrides)
    if dry_run:
        return plan(run)
    if resume is None and (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        raise InvalidInput(
            "holds a run already", where=str(folder), do=f"sfumato train --resume {folder}, or another --out"
        )
    with display(run) as observe:
        train_run(run, folder, observe, sample_grid=samples, allow_change=allow_change)
    return {"model": str(folder / "model")}


def plan(run: Run) -> dict[str, Any]:
    """What a run will take, in words and round numbers; see sfumato.training.plan."""
    found = measure(run)
    seconds = found.seconds or 0.0
    return {
        "parameters": found.parameters,
        "pictures": found.items,
        "batch": run.batch,
        "steps": round(seconds / found.seconds_per_step),
        "seconds a step": round(found.seconds_per_step, 3),
        "minutes": round(seconds / 60, 1),
        "memory, MiB": round(found.memory / 2**20),
        "free memory, MiB": round(available(torch.device("cpu")) / 2**20),
        "checkpoint, MiB": round(found.checkpoint / 2**20),
    }


@contextmanager
def display(run: Run) -> Iterator[Callable[[Event], None]]:
    """A live line on stderr where somebody watches; else a line of JSON for all but the steps."""
    if not sys.stderr.isatty():
        yield _log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(event: Event) -> None:
            if event.kind in ("step", "skipped"):
                bar.update(task, completed=event.fraction, description=_line(event))
            elif event.kind != "started":
                bar.console.print(_words(event), markup=False, highlight=False)

        yield show


def _line(event: Event) -> str:
    numbers = [f"step {event.step}"]
    if event.loss is not None:
        numbers.append(f"loss {event.loss:.4f}")
    if event.gradient_norm is not None:
        numbers.append(f"gradient {event.gradient_norm:.2f}")
    if event.images_per_second is not None:
        numbers.append(f"{event.images_per_second:.0f} images/s")
    return "  ".join(numbers)


def _words(event: Event) -> str:
    words = [f"step {event.step}: {event.kind}"]
    if event.bands:
        words.append("loss by noise band, cleanest first: " + " ".join(f"{loss:.4f}" for loss in event.bands))
    words += [str(part) for part in (event.message, event.path) if part]
    return " ".join(words)


def _log(event: Event) -> None:
    if event.kind != "step" or event.step % 100 == 0:
        print(
            json.dumps(
                {
                    "step": event.step,
                    "kind": event.kind,
                    "text": _words(event) if event.message else _line(event),
                }
            ),
            file=sys.stderr,
        )
