"""Heeding: whether a model listens to what it is told, measured while it learns to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.training.validation import Validation

_SURE = 4.0  # standard errors: one validation in thirty thousand says so by chance


@dataclass(frozen=True)
class Heeding:
    """How much worse pictures are foretold when each is told what belongs to another.

    A model that does not heed an input loses nothing by it, whatever its loss; of a control this is the
    first to be seen, long before pictures obey, and where it jumps from nothing within a few hundred steps
    that is the sudden convergence of Zhang, Rao & Agrawala 2023, arXiv:2302.05543, section 4.

    Args:
        inputs: what was handed on to another item.
        gaps: by noise band, cleanest first: the share by which the loss rises.
        rise: of all bands.
        error: its standard error over the items.
        growth: root mean square of the weights that began at zero, of networks that have such; else None.
    """

    inputs: tuple[str, ...]
    gaps: tuple[float, ...]
    rise: float
    error: float
    growth: float | None = None

    @property
    def heeded(self) -> bool:
        """Whether the rise is beyond chance: more than four standard errors."""
        return self.rise > _SURE * self.error

    def __str__(self) -> str:
        words = f"with another's {' and '.join(self.inputs)} the loss is {self.rise:+.1%}"
        grown = "" if self.growth is None else f"; zero convolutions have grown to {self.growth:.2g}"
        return f"{words} (± {self.error:.1%}): {'heeded' if self.heeded else 'not heeded yet'}{grown}"


def handed_on(validation: Validation, inputs: Sequence[str]) -> Validation:
    """The same items under the same noise, of which each is told the next one's inputs of these names."""
    items = validation.items
    moved = [
        item._replace(inputs={**item.inputs, **{name: other.inputs.get(name) for name in inputs}})
        for item, other in zip(items, [*items[1:], *items[:1]], strict=True)
    ]
    return Validation(
        moved, validation.seeds, validation.collate, validation.bands, validation.batch, validation.stratified
    )


def heeding(inputs: Sequence[str], right: Tensor, wrong: Tensor, network: nn.Module) -> Heeding:
    """From losses (items, bands) under what belongs to each item, and under what belongs to the next."""
    plain = right.mean(0).clamp_min(1e-12)
    # Each band counts as much as its own loss lets it: clean bands have losses of another size.
    shares = (wrong - right) / plain
    each = shares.mean(1)
    error = float(each.std()) / len(each) ** 0.5 if len(each) > 1 else float("inf")
    return Heeding(
        tuple(inputs), tuple(shares.mean(0).tolist()), float(each.mean()), error, growth_of(network)
    )


def growth_of(network: nn.Module) -> float | None:
    """How far weights that began at zero have come, over all parts of a network that have such."""
    parts: list[Any] = [part for part in network.modules() if hasattr(type(part), "growth")]
    return float(sum(part.growth for part in parts)) / len(parts) if parts else None


def first_heeded(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the first validation in a run's log at which the inputs were heeded, and still were after.

    Args:
        lines: of losses.jsonl, as `LossLog.read` gives them.
    """
    told = [
        (line["step"], line["heeded"]["rise"], line["heeded"]["error"]) for line in lines if "heeded" in line
    ]
    first = None
    for step, rise, error in told:
        if rise <= _SURE * error:
            first = None
        elif first is None:
            first = step
    return first
