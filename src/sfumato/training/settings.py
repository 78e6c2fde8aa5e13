"""Settings of a training run, as plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sfumato.core.errors import InvalidInput
from sfumato.training.checkpoint import Keep
from sfumato.training.ema import Average
from sfumato.training.optimizers import AdamW


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written and which are kept.

    Args:
        every: steps between two; one more is written at the end and when the run is stopped.
        minutes: also after so much time without one.
        keep: which survive pruning.
        failures: saves in a row that may fail (disk full) before training stops.
    """

    every: int = 500
    minutes: float | None = 10.0
    keep: Keep = field(default_factory=Keep)
    failures: int = 3


@dataclass(frozen=True)
class Validating:
    """How the loss is watched: fixed items, fixed noise, bands of noise levels.

    Args:
        every: steps between two; 0 never.
        items: how many fixed items.
        bands: parts of the time range, each with a loss of its own.
        batch: rows of one network call; None takes the training batch.
        shuffled: inputs, such as ("hint",), that are also told to the wrong items: by how much the loss rises
            says whether they are heeded.
    """

    every: int = 0
    items: int = 32
    bands: int = 8
    batch: int | None = None
    shuffled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What training does beside model, data and objective.

    Args:
        batch: pictures an optimizer step, over all processes and accumulated parts.
        steps: optimizer steps in all; None leaves it to `minutes`.
        minutes: training time in all; the schedule follows the time where no steps are given.
        accumulate: parts a batch is computed in, one after another.
        seed: everything random follows from it.
        precision: "float32", or "bf16" for the network's arithmetic under autocast; weights stay float32.
            "auto" is bf16 where the machine multiplies such numbers: emulated, they take five times as long.
        device: "auto" takes what accelerate finds, "cpu" stays there.
        workers: threads that load data ahead; 0 loads in the step.
        optimizer: AdamW and its schedule.
        ema: running averages; the first is what the finished model holds. None at all keeps the raw weights.
        saving: checkpoints.
        validation: the loss by noise band.
        sample_every: steps between two sample grids; 0 never.
        most_skipped: steps in a row skipped for non-finite gradients before training stops.
        most_bad: share of unreadable items above which training stops.
        tensorboard: write events for it into the run directory.
        cache: keep what a frozen autoencoder and frozen text encoders make of the data, in the run directory
            or in a folder of this name, which runs may share.
        compile: the network's arithmetic, by torch.compile, which takes a minute or two when training begins;
            losses are the same to rounding. --dry-run times steps without.
        winograd: the network's convolutions of three by three on a CPU: by Winograd where places and channels
            are many, with a fourth of the multiplications, and without the zeros around in small maps; losses
            are the same to rounding. It takes g++, and goes with compile.
        recompute: blocks of the network compute again what the gradient needs, in place of keeping it
            (gradient checkpointing): a third more time, much less memory, losses the same to rounding.
    """

    batch: int = 32
    steps: int | None = 1000
    minutes: float | None = None
    accumulate: int = 1
    seed: int = 0
    precision: Literal["float32", "bf16", "auto"] = "float32"
    device: Literal["auto", "cpu"] = "auto"
    workers: int = 0
    optimizer: AdamW = field(default_factory=AdamW)
    ema: tuple[Average, ...] = (Average(),)
    saving: Saving = field(default_factory=Saving)
    validation: Validating = field(default_factory=Validating)
    sample_every: int = 0
    most_skipped: int = 10
    most_bad: float = 0.05
    tensorboard: bool = False
    cache: bool | str = False
    compile: bool = False
    winograd: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1 or self.accumulate < 1 or self.batch % self.accumulate:
            raise InvalidInput(
                f"a batch of {self.batch} does not fall into {self.accumulate} parts",
                where="batch, accumulate",
            )
        if self.steps is None and self.minutes is None:
            raise InvalidInput("a run without end", where="steps, minutes", do="give steps, minutes or both")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and not self.minutes > 0):
            raise InvalidInput("steps and minutes must be positive", where="steps, minutes")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"{self.seed} is no seed", where="seed", do="give 0 to 2^63 - 1")
        if self.workers < 0 or self.saving.every < 1 or self.validation.every < 0 or self.sample_every < 0:
            raise InvalidInput(
                "workers and intervals cannot be negative", where="workers, saving, validation"
            )
