"""Copies of modules without numbers, to learn from what work on them would take."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

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
