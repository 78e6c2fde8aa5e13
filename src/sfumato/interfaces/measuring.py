"""The command that evaluates a model against real pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.load import load
from sfumato.core.alone import Coder
from sfumato.core.errors import InvalidInput, NotFound, nearest
from sfumato.core.noise import derive
from sfumato.data.item import collate
from sfumato.interfaces.request import Request
from sfumato.metrics.evaluate import Report, ask, model_names, names
from sfumato.metrics.evaluate import evaluate as compare
from sfumato.metrics.features import EfficientNetLite0Features, FeatureNetwork, InceptionFeatures
from sfumato.model import Model
from sfumato.registry import build


def evaluate(
    place: Path,
    data: Any,
    count: int,
    metrics: Sequence[str],
    features: str,
    seed: int,
    batch: int,
    walk: dict[str, Any],
) -> Report:
    """A model's pictures against as many real ones; picture i is told what real picture i is labelled with.

    Metrics that ask what the model says of real pictures need no pictures of its own: with those alone none
    are generated.

    Args:
        place: the model.
        data: the real pictures, a name or a description.
        count: pictures on each side; no more than there are real ones.
        metrics: names, of either sort.
        features: "efficientnet_lite0", or the path of Inception weights.
        seed: of the first generated picture, and of the choice among the real ones.
        batch: pictures at once.
        walk: fields of the request, None where the card decides.
    """
    if count < 2 or batch < 1:
        raise InvalidInput("needs at least 2 pictures, 1 at once", where="count, batch")
    metrics = [name.strip() for name in metrics]
    known = (*names(), *model_names())
    for name in metrics:
        if name not in known:
            raise NotFound(f"no metric is called {name!r}", where="metrics", do=nearest(name, known))
    asked = [name for name in metrics if name in model_names()]
    compared = [name for name in metrics if name not in asked]
    network = _features(features) if compared or not asked else None
    model = load(place)
    real = build("data", data)
    count = min(count, len(real))
    order = torch.randperm(
        len(real), generator=torch.Generator().manual_seed(derive(seed, "evaluate") % 2**63)
    )
    items = [order[i : i + batch].tolist() for i in range(0, count, batch)]
    items[-1] = items[-1][: count - batch * (len(items) - 1)]
    fields = {name: value for name, value in walk.items() if value is not None}
    # What a model cannot be asked is refused before hours of sampling.
    said = ask(
        model, lambda: (collate([real.load(i, seed) for i in rows]) for rows in items), asked, seed=seed
    )
    report = Report("", 0, count, ())
    if network is not None:
        report = compare(
            _generated(model, real, items, seed, fields),
            (torch.stack([real.load(i, seed).image for i in rows]) for rows in items),
            network,
            compared,
        )
    return replace(report, estimates=(*report.estimates, *said))


def _generated(
    model: Model, real: Any, items: list[list[int]], seed: int, fields: dict[str, Any]
) -> Iterator[Tensor]:
    if isinstance(model.denoiser, Coder):
        # What an autoencoder generates of real pictures is those pictures, given back.
        with torch.inference_mode():
            for rows in items:
                image = torch.stack([real.load(i, seed).image for i in rows])
                yield model.denoiser.reconstruct(image).clamp(-1, 1)
        return
    done = 0
    for rows in items:
        told = [real.load(i, seed).inputs for i in rows]
        inputs = {name: [each.get(name) for each in told] for name in model.conditioner.inputs}
        # What no picture says is not told at all.
        inputs = {name: values for name, values in inputs.items() if any(v is not None for v in values)}
        # Data in buckets say of what size their pictures are, which is no input but the size to generate.
        sizes = inputs.pop("size", None)
        sized = fields if sizes is None or "size" in fields else {**fields, "size": tuple(sizes[0])}
        seeds = [seed + done + i for i in range(len(rows))]
        yield Request.of(seeds=seeds, inputs=inputs, **sized).run(model).tensor
        done += len(rows)


def _features(name: str) -> FeatureNetwork:
    if name == "efficientnet_lite0":
        return EfficientNetLite0Features()
    if not Path(name).is_file():
        raise NotFound(
            "neither efficientnet_lite0 nor a file of Inception weights", where=f"features {name!r}"
        )
    return InceptionFeatures(Path(name))
