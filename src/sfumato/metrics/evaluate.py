"""Evaluation of a set of pictures against real ones: one pass over each side, every metric from it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite, NotFound, nearest
from sfumato.data.item import Batch
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.features import FeatureNetwork
from sfumato.model import Model

DEFAULT_METRICS = ("frechet", "kid", "precision_recall")

# How often each side has been heard of: (side, pictures so far).
Observe = Callable[[str, int], None]

Comparison = Callable[..., Estimate | tuple[Estimate, ...]]
_TAKES = ("generated", "real", "features")
_ASKS = ("model", "data", "seed")


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Args:
        features: name of the feature network.
        n: generated pictures.
        n_real: real pictures.
        estimates: the numbers in the order asked for.
    """

    features: str
    n: int
    n_real: int
    estimates: tuple[Estimate, ...]

    def __getitem__(self, name: str) -> Estimate:
        """The number of this name ("frechet", "recall") or label."""
        for estimate in self.estimates:
            if name in (estimate.name, estimate.label):
                return estimate
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """The report ready for JSON, the numbers by label."""
        numbers = {estimate.label: estimate.as_dict() for estimate in self.estimates}
        return {"features": self.features, "n": self.n, "n_real": self.n_real, "metrics": numbers}

    def __str__(self) -> str:
        return "\n".join(str(estimate) for estimate in self.estimates)


def evaluate(
    generated: Iterable[Tensor],
    real: Iterable[Tensor],
    features: FeatureNetwork,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    observe: Observe | None = None,
) -> Report:
    """Measure generated pictures against real ones.

    Both sides are read once and kept as features (8 D bytes a picture), never as pictures. Names and options
    are checked before the first picture is asked for.

    Args:
        generated: batches of pictures (B, 3 or 1, H, W) in [-1, 1], or one tensor of them.
        real: the same.
        features: what they are compared by.
        metrics: file names of this folder that compare two sets of features.
        options: for a metric, its keyword arguments, such as {"kid": {"subset": 500}}.
        observe: called with ("generated" or "real", pictures so far) after every batch.

    Raises:
        NotFound: no metric of that name.
        InvalidInput: a metric or option that does not apply here, no pictures, or too few of them.
        NotFinite: a picture or its features with NaN or infinity.
    """
    chosen = _chosen(metrics, options or {})
    first = embed(generated, features, side="generated", observe=observe)
    second = embed(real, features, side="real", observe=observe)
    estimates: list[Estimate] = []
    for compare in chosen:
        found = compare(first, second, features=features.name)
        estimates.extend(found if isinstance(found, tuple) else (found,))
    return Report(features.name, len(first), len(second), tuple(estimates))


def ask(
    model: Model,
    data: Callable[[], Iterable[Batch]],
    metrics: Sequence[str],
    *,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Estimate, ...]:
    """Measure what a model says of real pictures, with none generated: bits a dimension, what it gives back.

    Args:
        model: of pictures in pixel space, or an autoencoder for `reconstruction`.
        data: makes the stream of batches, once a metric.
        metrics: names of `model_names`.
        seed: of the first picture's noise.
        options: for a metric, its keyword arguments, such as {"bound": {"terms": None}}.

    Raises:
        NotFound: no metric of that name.
        InvalidInput: an option that does not apply, a model of latents, or no 8-bit pictures.
    """
    options = options or {}
    chosen = [_bound(name, options.get(name, {}), model_names(), _ASKS) for name in metrics]
    found = [measure(model, data(), seed=seed) for measure in chosen]
    return tuple(each for some in found for each in (some if isinstance(some, tuple) else (some,)))


def embed(
    images: Iterable[Tensor],
    features: FeatureNetwork,
    *,
    side: str = "images",
    observe: Observe | None = None,
) -> Tensor:
    """Features (N, D), float64, of a stream of pictures; keep them to compare many models with one set.

    Args:
        images: batches of pictures (B, 3 or 1, H, W) in [-1, 1], or one tensor of them.
        features: the network.
        side: what the pictures are called in errors.
        observe: called with (side, pictures so far) after every batch.

    Raises:
        InvalidInput: no pictures, or not pictures.
        NotFinite: a picture or its features with NaN or infinity.
    """
    batches = torch.split(images, 64) if isinstance(images, Tensor) else images
    found: list[Tensor] = []
    count = 0
    for batch in batches:
        _refuse_non_finite(batch, side, count, "")
        rows = features(batch)
        if rows.shape != (len(batch), features.dim):
            raise InvalidInput(
                f"{features.name} made {tuple(rows.shape)} of {len(batch)} pictures, "
                f"expected ({len(batch)}, {features.dim})",
                where="features",
            )
        _refuse_non_finite(rows, side, count, " after " + features.name)
        found.append(rows.double().cpu())
        count += len(batch)
        if observe is not None:
            observe(side, count)
    if count == 0:
        raise InvalidInput("there are no pictures", where=side)
    return torch.cat(found)


def _refuse_non_finite(values: Tensor, side: str, before: int, what: str) -> None:
    if values.ndim < 2:
        return
    bad = (~torch.isfinite(values)).flatten(1).any(1).nonzero()
    if len(bad):
        raise NotFinite(f"picture {before + int(bad[0, 0])} holds NaN or infinity{what}", where=side)


def _chosen(metrics: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """The comparing functions with their options bound."""
    if not metrics:
        raise InvalidInput("no metric was asked for", where="metrics", do="for example frechet")
    if stray := [name for name in options if name not in metrics]:
        raise InvalidInput(f"options for {stray[0]}, which is not asked for", where="options")
    return [_bound(name, options.get(name, {}), names(), _TAKES) for name in metrics]


def names() -> list[str]:
    """The metrics that `evaluate` takes: the files of this folder that compare two sets of features."""
    return _named(_TAKES)


def model_names() -> list[str]:
    """The metrics that `ask` takes: the files of this folder that ask a model what it says of pictures."""
    return _named(_ASKS)


def _named(takes: Sequence[str]) -> list[str]:
    package = importlib.import_module(__package__)
    found = (each.name for each in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if _metric(name, takes))


def _bound(name: str, options: Mapping[str, Any], known: Sequence[str], takes: Sequence[str]) -> Comparison:
    metric = _metric(name, takes)
    if metric is None:
        raise NotFound(f"no metric is called {name!r}", where="metrics", do=nearest(name, known))
    own = [key for key in inspect.signature(metric).parameters if key not in takes]
    if stray := [key for key in options if key not in own]:
        has = "it has " + ", ".join(own) if own else "it has none"
        raise InvalidInput(f"{name} has no option {stray[0]!r}", where="options", do=has)
    return partial(metric, **options)


def _metric(name: str, takes: Sequence[str]) -> Comparison | None:
    """The function of a file's own name, if its first arguments are these, the last of them by keyword."""
    try:
        module = importlib.import_module(f"{__package__}.{name}") if name.isidentifier() else None
    except ModuleNotFoundError as missing:
        if missing.name != f"{__package__}.{name}":
            raise
        return None
    found = getattr(module, name, None)
    if not inspect.isfunction(found):
        return None
    parameters = inspect.signature(found).parameters
    if tuple(parameters)[: len(takes)] != tuple(takes):
        return None
    return found if parameters[takes[-1]].kind is inspect.Parameter.KEYWORD_ONLY else None
