"""Modules without numbers: to learn from them what work would take, or to be filled from a file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


def on_meta(module: M) -> M:
    """A copy without numbers, for measuring; not the module with its tensors swapped, as threads share it."""
    with torch.inference_mode(False):
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
        } | {id(b): b.detach().to("meta") for b in module.buffers()}
        return copy.deepcopy(module, memo)


def sharing(module: M) -> M:
    """A copy whose parts are its own and whose weights are those of the module."""
    return copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})


@contextmanager
def without_numbers() -> Iterator[None]:
    """What is built has tensors without numbers, and none are drawn for them."""
    with torch.device("meta"), Undrawn():
        yield


class Undrawn(TorchFunctionMode):
    """Leaves new parameters as the memory they are given, which is not even asked for until it is touched.

    On the meta device that spares importing the seconds of code which PyTorch has for drawing no numbers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
