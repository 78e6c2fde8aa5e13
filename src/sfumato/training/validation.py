"""Validation: a loss by noise band that is comparable along a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.core.noise import Noise
from sfumato.data.item import Dataset
from sfumato.model import Model
from sfumato.training.loader import Loader
from sfumato.training.objectives.objective import TrainingObjective, told
from sfumato.training.order import DataOrder


@dataclass(frozen=True)
class BandLosses:
    """Validation losses by band of times, cleanest first.

    Args:
        edges: times (bands + 1,) between which the bands lie.
        losses: mean over each band.
        errors: standard errors of those means over the items.
    """

    edges: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all bands: one number for "better"."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Validation:
    """Fixed items under fixed noise, seen twice in every band of times.

    The same noise at each validation makes the numbers of a run comparable; stratified times make them close
    to the truth: in a band the 2 n looks at n items stand one in each of 2 n even parts, dealt from a start
    chosen by seed. (Pairs of opposite noise are not used: the error is mostly even in the noise, and measured
    they made the variance larger in three bands of four.)

    Args:
        items: what is looked at.
        seeds: one an item.
        collate: items → batch.
        bands: even parts of [t_min, 1].
        batch: rows of one network call.
        stratified: spread the times over the band; off, each is drawn by itself, which the tests compare.
    """

    items: Sequence[Any]
    seeds: Sequence[int]
    collate: Callable[[Sequence[Any]], Any]
    bands: int = 8
    batch: int = 32
    stratified: bool = True

    @torch.no_grad()
    def table(self, model: Model, objective: TrainingObjective, share: slice | None = None) -> Tensor:
        """Losses of the items (or of a share of them) in each band, (items, bands) float64."""
        rows = range(len(self.items))[share or slice(None)]
        chunks = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        return torch.cat([self._rows(model, objective, list(chunk)) for chunk in chunks])

    def edges(self, model: Model) -> Tensor:
        """Times (bands + 1,) between the bands, from t_min to 1."""
        return torch.linspace(model.process.t_min, 1.0, self.bands + 1, dtype=torch.float64)

    def _rows(self, model: Model, objective: TrainingObjective, rows: list[int]) -> Tensor:
        data = self.collate([self.items[i] for i in rows])
        if (errors := objective.timeless(model, data)) is not None:
            return errors.double().cpu()[:, None].expand(-1, self.bands)
        x = model.space.encode(data.image.to(model.device))
        condition = told(model, data)
        noise = Noise([self.seeds[i] for i in rows])
        edges = self.edges(model)
        columns = []
        for band in range(self.bands):
            looks = []
            for look in range(2):
                moment = float(2 * band + look)
                u = noise.uniform((len(x), 1), "validation level", moment)[:, 0]
                if self.stratified:
                    count = 2 * len(self.items)
                    parts = torch.tensor(rows) + look * len(self.items) + self._start(band, count)
                    u = (parts % count + u) / count
                t = edges[band] + (edges[band + 1] - edges[band]) * u
                eps = noise.randn_like(x, "validation", moment)
                looks.append(objective.errors(model, x, condition, t, eps))
            columns.append(torch.stack(looks).double().mean(0).cpu())
        return torch.stack(columns, 1)

    def _start(self, band: int, count: int) -> int:
        return int(Noise(list(self.seeds[:1])).uniform((1, 1), "validation start", band).item() * count)


def fixed_items(
    data: Dataset, seed: int, count: int, bands: int, batch: int, collate: Callable[[Sequence[Any]], Any]
) -> Validation:
    """Validation on `count` items chosen by seed: the same ones along the run and after resuming."""
    order = DataOrder(len(data), count, seed, getattr(data, "bucket_of", None))
    drawn, loader = order(0), Loader(data, order, collate)
    items = [loader.item(i, s) for i, s in zip(drawn.indices, drawn.seeds, strict=True)]
    return Validation(items, drawn.seeds, collate, bands, batch)


def summarise(edges: Tensor, table: Tensor) -> BandLosses:
    """Means and standard errors of a table (items, bands)."""
    errors = table.std(0) / len(table) ** 0.5 if len(table) > 1 else torch.zeros(table.shape[1])
    return BandLosses(tuple(edges.tolist()), tuple(table.mean(0).tolist()), tuple(errors.tolist()))
