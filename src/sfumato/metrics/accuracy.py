"""Class accuracy: the share of generated pictures that a classifier takes for what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest

import torch
from torch import Tensor

from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.metrics.estimate import Estimate, wilson


@torch.no_grad()
def accuracy(
    generated: Iterable[Tensor],
    classes: Iterable[Tensor],
    classifier: Callable[[Tensor], Tensor],
    *,
    name: str = "classifier",
) -> Estimate:
    """The share of pictures whose intended class the classifier ranks first, with its Wilson interval.

    It measures obedience, not variety: read it beside the classifier's own accuracy on real pictures,
    which is where it should end.

    Args:
        generated: batches of pictures (B, C, H, W) in [-1, 1].
        classes: for each batch the intended classes (B,), whole numbers.
        classifier: pictures -> logits (B, K).
        name: of the classifier, for the label.

    Raises:
        InvalidInput: no pictures, more batches on one side, shapes that disagree, or a class the classifier
            does not know.
        NotFinite: logits with NaN.
    """
    right, total = 0, 0
    for images, wanted in zip_longest(generated, classes):
        if images is None or wanted is None:
            raise InvalidInput("pictures and classes come in different numbers of batches")
        where = f"batch after picture {total}"
        logits = classifier(images)
        if logits.ndim != 2 or wanted.ndim != 1 or not len(images) == len(logits) == len(wanted):
            shapes = f"logits {tuple(logits.shape)}, classes {tuple(wanted.shape)}"
            raise InvalidInput(f"{len(images)} pictures, {shapes}", where=where)
        if torch.isnan(logits).any():
            raise NotFinite("the classifier returned NaN", where=where)
        least, most = (int(wanted.min()), int(wanted.max())) if len(wanted) else (0, 0)
        if not 0 <= least <= most < logits.shape[1]:
            known = f"the classifier knows classes 0 to {logits.shape[1] - 1}"
            raise InvalidInput(f"{known}, asked was {least} to {most}", where=where)
        right += int((logits.argmax(1).cpu() == wanted.cpu()).sum())
        total += len(images)
    if total == 0:
        raise InvalidInput("there are no pictures", where="generated")
    return Estimate("accuracy", right / total, *wilson(right, total), total, 0, name)
