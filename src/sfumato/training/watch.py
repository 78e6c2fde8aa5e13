"""Watch: what a run looks at between steps, on fixed items, over all its processes."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.noise import derive
from sfumato.data.item import Dataset
from sfumato.model import Model
from sfumato.training.ema import EMA
from sfumato.training.heeding import Heeding, handed_on, heeding
from sfumato.training.objectives.objective import TrainingObjective
from sfumato.training.parts import autocast, collate_of, evaluating, gather
from sfumato.training.settings import Settings
from sfumato.training.validation import BandLosses, Validation, fixed_items, summarise


class Seen(NamedTuple):
    """The loss by noise band, and whether the inputs that are to be watched are heeded."""

    losses: BandLosses
    heeding: Heeding | None


class Watch:
    """Measures a model with averaged weights on items chosen by the run's seed, the same ones all along.

    Args:
        data: of which the items are.
        settings: of the run; `validation` says how many, in which bands, and what is shuffled.
        accelerator: each process looks at its share of the items.
    """

    def __init__(self, data: Dataset, settings: Settings, accelerator: Any) -> None:
        wanted, world = settings.validation, accelerator.num_processes
        self.settings, self.accelerator = settings, accelerator
        self.validation = fixed_items(
            data,
            derive(settings.seed, "validation"),
            max(min(wanted.items, len(data)) // world, 1) * world,
            wanted.bands,
            wanted.batch or settings.batch // settings.accumulate,
            collate_of(data),
        )
        told = {name for item in self.validation.items for name in item.inputs}
        if odd := next((name for name in wanted.shuffled if name not in told), None):
            raise InvalidInput(
                f"no item has an input {odd!r}", where="validation.shuffled", do=nearest(odd, sorted(told))
            )

    def __call__(self, model: Model, objective: TrainingObjective, ema: EMA) -> Seen:
        """What is seen of a model now."""
        shuffled = self.settings.validation.shuffled
        with evaluating(model, ema), autocast(model, self.settings.precision):
            right = self._table(self.validation, model, objective)
            losses = summarise(self.validation.edges(model), right)
            if not shuffled:
                return Seen(losses, None)
            wrong = self._table(handed_on(self.validation, shuffled), model, objective)
        return Seen(losses, heeding(shuffled, right, wrong, model.denoiser))

    def _table(self, validation: Validation, model: Model, objective: TrainingObjective) -> Tensor:
        """Losses (items, bands) of all processes' items."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        table = validation.table(model, objective, slice(rank, None, world))
        return gather(self.accelerator, table.to(model.device)).cpu()
