"""What a run says of itself: events for observers, status.json, and the log of losses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from sfumato.core.atomic import write_text
from sfumato.core.errors import MissingExtra


@dataclass(frozen=True)
class Event:
    """Something happened in a run.

    Args:
        kind: "started", "step", "skipped" (non-finite gradients), "saved", "validated", "sampled", "cached"
            (what frozen parts make of the data), "warning" or "finished".
        step: optimizer steps done.
        steps: steps in all, if known.
        fraction: share of the run done, 0 to 1, by steps or by time.
        loss: of this step.
        gradient_norm: before clipping.
        rate: learning rate.
        images_per_second: lately.
        eta: seconds left, if known.
        epoch: rounds through the data.
        bands: validation loss by noise band, cleanest first.
        message: in words, for warnings.
        path: what was written.
    """

    kind: Literal[
        "started", "step", "skipped", "saved", "validated", "sampled", "cached", "warning", "finished"
    ]
    step: int
    steps: int | None = None
    fraction: float = 0.0
    loss: float | None = None
    gradient_norm: float | None = None
    rate: float | None = None
    images_per_second: float | None = None
    eta: float | None = None
    epoch: int = 0
    bands: tuple[float, ...] = ()
    message: str = ""
    path: Path | None = None


Observe = Callable[[Event], None]


class Clock:
    """How far a run is, how fast, and how long it still takes.

    Args:
        steps: optimizer steps in all, or None.
        minutes: time in all, or None; one of the two is given.
        batch: images a step.
        elapsed: seconds spent before the run was resumed.
    """

    def __init__(self, steps: int | None, minutes: float | None, batch: int, elapsed: float = 0.0) -> None:
        self.steps, self.minutes, self.batch = steps, minutes, batch
        self._last = time.monotonic()
        self._began = self._last - elapsed
        self._pace = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds spent, over all resumptions."""
        return time.monotonic() - self._began

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.minutes is not None and self.elapsed >= 60 * self.minutes

    def fraction(self, step: int) -> float:
        """The share of the run that is done: by steps, or by time where no steps are given."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None
        return min(self.elapsed / (60 * self.minutes), 1.0)

    def tick(self) -> float:
        """One step is done: images a second, as an average that forgets within some twenty steps."""
        now = time.monotonic()
        took, self._last = max(now - self._last, 1e-9), now
        self._pace = took if self._pace == 0 else 0.95 * self._pace + 0.05 * took
        return self.batch / self._pace

    def pause(self) -> None:
        """Time since the last step (saving, validating) was not spent on a step."""
        self._last = time.monotonic()

    def eta(self, step: int) -> float | None:
        """Seconds left, if known."""
        left = []
        if self.steps is not None and self._pace:
            left.append((self.steps - step) * self._pace)
        if self.minutes is not None:
            left.append(60 * self.minutes - self.elapsed)
        return max(min(left), 0.0) if left else None


class Status:
    """status.json, rewritten as one act, at most once a second except when forced."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "status.json"
        self._written = 0.0

    def write(self, state: str, event: Event, force: bool = False, **more: Any) -> None:
        """What the run is at ("running", "finished", "stopped", "failed"), the last event, and more."""
        now = time.monotonic()
        if not force and now - self._written < 1:
            return
        self._written = now
        content = {key: value for key, value in asdict(event).items() if value not in (None, "", ())}
        content = {"state": state, "pid": os.getpid(), "updated": time.time(), **content, **more}
        write_text(self.path, json.dumps(content, indent=1, default=str))


class LossLog:
    """losses.jsonl: one line a step, cut back to the checkpoint when a run is resumed.

    Args:
        directory: of the run.
        step: steps done; later lines are dropped.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self.path = directory / "losses.jsonl"
        kept = [line for line in self.read(directory) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file: TextIO = self.path.open("a")

    def add(self, **values: Any) -> None:
        """One line."""
        self._file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """All lines to the disk, before a checkpoint counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> LossLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()
        self._file.close()

    @staticmethod
    def read(directory: Path) -> list[dict[str, Any]]:
        """All whole lines of a run, oldest first: step, loss, gradient_norm, rate; or step, bands, heeded."""
        path = directory / "losses.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines


def tensorboard(directory: Path) -> Observe:
    """An observer that writes events for tensorboard into a directory.

    Raises:
        MissingExtra: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboard is not installed", do="pip install tensorboard") from None
    writer = SummaryWriter(str(directory))

    def observe(event: Event) -> None:
        if event.kind == "step":
            for name in ("loss", "gradient_norm", "rate", "images_per_second"):
                writer.add_scalar(f"train/{name}", getattr(event, name), event.step)
        for band, loss in enumerate(event.bands):
            writer.add_scalar(f"validation/band_{band + 1}", loss, event.step)
        if event.kind in ("saved", "validated", "finished"):
            writer.flush()

    return observe
