"""Borrowed models: estimators that a user has, as a function or a file of a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import CheckpointCorrupt, InvalidInput, MissingExtra, NotFound

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures in [0, 1]: what most estimators take away and divide by."""


def opened(model: Any, where: str) -> Callable[[Tensor], Any]:
    """What a user's model is called by.

    Args:
        model: a function of pictures (1, 3, H, W), or the path of a file: TorchScript, or a program of
            torch.export (.pt2). Either is a program that runs: name one that you trust.
        where: what errors call it.

    Raises:
        MissingExtra: None.
        NotFound, CheckpointCorrupt: no such file, or no such program in it.
    """
    if model is None:
        raise MissingExtra(
            "needs a model, and none is part of sfumato",
            where=where,
            do="set model to a TorchScript or torch.export file that you have, or to a function",
        )
    if callable(model):
        return model
    if not isinstance(model, str | Path):
        raise InvalidInput(f"{type(model).__name__} is no model", where=f"{where}.model")
    path = Path(model).expanduser()
    if not path.is_file():
        raise NotFound("no such file of a model", where=str(path))
    return _read(str(path), path.stat().st_mtime_ns)


def shown(
    picture: Tensor, side: int, multiple: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Tensor:
    """A picture (3, H, W) in [-1, 1] as an estimator takes it: (1, 3, h, w).

    Args:
        picture: the picture.
        side: the shorter side it is scaled to, 0 for its own.
        multiple: what both sides are brought to a multiple of.
        mean, deviation: of pictures in [0, 1], taken away and divided by.
    """
    height, width = picture.shape[1:]
    factor = side / min(height, width) if side else 1
    size = [max(1, round(factor * each / multiple)) * multiple for each in (height, width)]
    x = picture[None]
    if size != [height, width]:
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    middle, spread = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, deviation))
    return ((x + 1) / 2 - middle) / spread


def tensor_of(told: Any, where: str) -> Tensor:
    """The tensor that a model returns, or the first of several, on the CPU."""
    while isinstance(told, Mapping | tuple | list) and len(told):
        told = next(iter(told.values() if isinstance(told, Mapping) else told))
    if not isinstance(told, Tensor) or not told.numel() or not bool(torch.isfinite(told).all()):
        raise InvalidInput("the model told no tensor of finite numbers", where=f"{where}.model")
    return told.detach().float().cpu()


@functools.lru_cache(maxsize=4)
def _read(path: str, changed: int) -> Callable[[Tensor], Any]:
    try:
        if path.endswith(".pt2"):
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception as fault:  # both may fail in any way on what is no program
        raise CheckpointCorrupt(
            f"holds no program: {type(fault).__name__}",
            where=path,
            do="give a file of torch.jit.save or torch.export.save; a file of weights alone is none",
        ) from fault
