"""The sheet of samples that a training run draws: what was told beside what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.data.item import Item
from sfumato.data.layout import is_layout
from sfumato.generation.images import to_image
from sfumato.interfaces.request import Request
from sfumato.model import Model

SHOWN = 8
"""Pictures of a sheet."""

_UNSAID = ("size", "original_size", "crop", "target_size", "noise_seed", "noise_level")
"""Inputs that are left to the model: a sample is to be of the size it makes, and not cut."""


def samples(model: Model, step: int, items: Sequence[Item]) -> Any:
    """The same few seeds every time, told as the items are; a model of names alone, the first of its names.

    Args:
        model: what is asked.
        step: of the run.
        items: fixed ones, of one size, with the inputs that the model is told.
    """
    labels = getattr(model.conditioner, "labels", {})
    told = [items[i % len(items)].inputs for i in range(SHOWN)]
    heeded = [name for name in model.conditioner.inputs if name not in _UNSAID]
    inputs = {name: [each.get(name) for each in told] for name in heeded}
    fields: dict[str, Any] = {"seeds": list(range(SHOWN)), "size": tuple(items[0].image.shape[1:])}
    if labels and all(name in labels and isinstance(values[0], str) for name, values in inputs.items()):
        inputs = {name: [names[i % len(names)] for i in range(SHOWN)] for name, names in labels.items()}
    inputs = {name: values for name, values in inputs.items() if any(v is not None for v in values)}
    images = Request.of(**fields, inputs=inputs).run(model).tensor
    cells = []
    for row, image in enumerate(images):
        said = {name: values[row] for name, values in inputs.items() if values[row] is not None}
        cells.append(torch.cat([*shown(said, image), image], dim=2))
    rows = [torch.cat(cells[i : i + SHOWN // 2], dim=2) for i in range(0, SHOWN, SHOWN // 2)]
    return to_image(torch.cat(rows, dim=1))


def shown(said: Mapping[str, Any], like: Tensor) -> list[Tensor]:
    """What can be seen of what is told, as pictures of the size and channels of another (C, H, W).

    A picture as it is, grey where it has a hole; a small one in its pixels; a map of classes in colours, of
    depth in greys; of boxes their frames, in the colour of the label.
    """
    size, pictures = like.shape[1:], []
    for name, value in said.items():
        if name == "mask" and "image" in said:
            continue
        if is_layout(value) and value:
            pictures.append(_frames(value, size[0], size[1]))
        elif isinstance(value, Tensor) and value.is_floating_point():
            picture = value if value.ndim == 3 else _spread(value)[None]
            if name == "image" and "mask" in said:
                picture = picture.masked_fill(said["mask"] > 0, 0.0)
            pictures.append(picture)
        elif isinstance(value, Tensor) and value.ndim == 2:
            pictures.append(torch.stack([_color(int(n)) for n in value.flatten()], 1).view(3, *value.shape))
    return [_fitted(picture, like) for picture in pictures]


def _fitted(picture: Tensor, like: Tensor) -> Tensor:
    if picture.shape[1:] != like.shape[1:]:
        picture = F.interpolate(picture[None], tuple(like.shape[1:]), mode="nearest")[0]
    if len(picture) == len(like):
        return picture
    grey = picture[:3].mean(0, keepdim=True).expand(min(len(like), 3), -1, -1)
    return torch.cat((grey, torch.ones_like(grey[:1]))) if len(like) == 4 else grey


def _spread(depth: Tensor) -> Tensor:
    low, high = depth.min(), depth.max()
    return 2 * (depth - low) / (high - low).clamp_min(1e-30) - 1


def _color(number: int) -> Tensor:
    """Black for 0, then colours far apart: steps of the golden angle around the hue."""
    hue = number * 0.618034 % 1
    wheel = [abs((6 * hue + shift) % 6 - 3) - 1 for shift in (0.0, 4.0, 2.0)]
    return torch.tensor([2 * min(max(part, 0.0), 1.0) - 1 if number else -1.0 for part in wheel])


def _frames(layout: Sequence[Mapping[str, Any]], height: int, width: int) -> Tensor:
    picture = torch.ones(3, height, width)
    for thing in layout:
        x0, y0, w, h = thing["box"]
        left, right = round(x0 * (width - 1)), round((x0 + w) * (width - 1))
        top, bottom = round(y0 * (height - 1)), round((y0 + h) * (height - 1))
        color = _color(1 + sum(str(thing.get("label")).encode()) % 97)[:, None]
        picture[:, top, left : right + 1] = picture[:, bottom, left : right + 1] = color
        picture[:, top : bottom + 1, left] = picture[:, top : bottom + 1, right] = color
    return picture
