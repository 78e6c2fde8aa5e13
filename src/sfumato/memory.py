"""How much memory a walk takes, measured on the meta device before anything is allocated."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.guidance import Guidance

M = TypeVar("M", bound=nn.Module)

_WALK_BYTES = 40
"""Bytes a number of x takes in a sampler: x, estimates of past steps and intermediate sums."""

_NOISE_BYTES = 160
"""Bytes that drawing one normal number takes on the CPU: the 64-bit words of its generator."""


def available(device: torch.device) -> int:
    """Bytes free for use on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        free = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemAvailable:")
        )
        # A container's own limit is often far below what the machine has.
        group = Path("/sys/fs/cgroup")
        free = min(
            free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        )
    except (OSError, ValueError, StopIteration):
        pass
    return max(free, 0)


def bytes_per_sample(
    denoiser: NetworkDenoiser,
    guidance: Sequence[Guidance],
    shape: tuple[int, ...],
    condition: Condition,
    null: Condition,
) -> int:
    """Peak bytes one sample adds while it is walked, weights not counted: one guided estimate and its noise.

    Args:
        denoiser: the model's own.
        guidance: applied in order.
        shape: of one x, (C, h, w).
        condition: of one row.
        null: of one row.
    """
    guided: Any = on_meta(denoiser)
    for each in guidance:
        guided = each(guided, null.to("meta"))

    def estimate() -> None:
        with torch.no_grad(), contextlib.suppress(RuntimeError, NotImplementedError):
            # A part that insists on real numbers cannot be measured so; what it got to is a lower bound.
            guided(torch.empty(1, *shape, device="meta"), denoiser.process(0.5), condition.to("meta"))

    return math.prod(shape) * (_NOISE_BYTES + _WALK_BYTES) + peak_bytes(estimate)


def on_meta(module: M) -> M:
    """A copy without numbers, for measuring; not the module with its tensors swapped, as threads share it."""
    with torch.inference_mode(False):
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
        } | {id(b): b.detach().to("meta") for b in module.buffers()}
        return copy.deepcopy(module, memo)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made by some work, and still alive, held at once."""
    tally = _Tally()
    with tally:
        work()
    return tally.peak


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.living.setdefault(storage._cdata, (reference, storage.nbytes()))
        for key, (reference, _) in list(self.living.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self.living[key]
        self.now = sum(size for _, size in self.living.values())
        self.peak = max(self.peak, self.now)
        return result
