"""How much memory a walk takes, measured on the meta device before anything is allocated."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.acceleration.packed import PACKED
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.guidance import Guidance
from sfumato.core.meta import on_meta
from sfumato.core.space import Space
from sfumato.model import Model

_WALK_BYTES = 40
"""Bytes a number of x takes in a sampler: x, estimates of past steps and intermediate sums."""

_NOISE_BYTES = 40
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


def bytes_at_most(model: Model, shape: Sequence[int], pixels: int) -> int:
    """More bytes than a picture can take, guessed from the sizes of weights alone.

    As if all that all layers make, at the size of the largest map and for sixteen rows, were alive at once,
    and one attention without a fused kernel. Where so much is free nothing need be measured, which loads the
    seconds of code that PyTorch has for tensors without numbers.

    Args:
        model: that draws.
        shape: of one x.
        pixels: of one picture.
    """
    places = math.prod(shape[1:])
    maps = {"network": places, "space": max(pixels, places)}
    numbers = 0
    for name, part in model.modules().items():
        made = sum(weight.shape[0] for weight in part.parameters() if weight.dim())
        numbers += maps.get(name, 0) * made
    return 4 * 16 * (numbers + 64 * places**2)


def bytes_per_sample(
    denoiser: NetworkDenoiser,
    guidance: Sequence[Guidance],
    shape: tuple[int, ...],
    condition: Condition,
    null: Condition,
    count: int = 1,
) -> int:
    """Peak bytes a sample adds while it is walked, weights not counted: one guided estimate, or its noise.

    Args:
        denoiser: the model's own.
        guidance: applied in order.
        shape: of one x, (C, h, w).
        condition: of as many rows.
        null: likewise.
        count: of samples walked together, whose bytes are told.
    """
    held = on_meta(denoiser)

    def estimate() -> None:
        estimate_on_meta(held, guidance, shape, condition, null, count)

    numbers = count * math.prod(shape)
    return numbers * _WALK_BYTES + max(numbers * _NOISE_BYTES, peak_bytes(estimate, _on_cpu(denoiser)))


def estimate_on_meta(
    denoiser: NetworkDenoiser,
    guidance: Sequence[Guidance],
    shape: tuple[int, ...],
    condition: Condition,
    null: Condition,
    count: int,
) -> None:
    """One guided estimate of so many samples, by a denoiser without numbers."""
    guided: Any = denoiser
    for each in guidance:
        guided = each(guided, null.to("meta"))
    with torch.no_grad(), contextlib.suppress(RuntimeError, NotImplementedError):
        # A part that insists on real numbers cannot be measured so; what it got to is a lower bound.
        guided(torch.empty(count, *shape, device="meta"), denoiser.process(0.5), condition.to("meta"))


def bytes_of_decoding(space: Space, shape: Sequence[int]) -> int:
    """Peak bytes that turning one x of a shape (C, h, w), or several (B, C, h, w), into pictures takes."""
    x = torch.empty(*((1,) if len(shape) == 3 else ()), *shape, device="meta")
    held = on_meta(space) if isinstance(space, nn.Module) else space

    def decode() -> None:
        # As above: what insists on real numbers leaves a lower bound.
        with torch.no_grad(), contextlib.suppress(RuntimeError, NotImplementedError):
            held.decode(x)

    return peak_bytes(decode, isinstance(space, nn.Module) and _on_cpu(space))


def bytes_of_weights(*parts: nn.Module) -> int:
    """Bytes of the weights and buffers of modules, packed ones besides, what they share counted once."""
    held = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for part in parts
        for tensor in (*part.parameters(), *part.buffers())
    }
    layers = (layer for part in parts for layer in part.modules())
    held |= {id(layer.packed): layer.packed.bytes for layer in layers if isinstance(layer, PACKED)}
    return sum(held.values())


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())


def peak_bytes(work: Callable[[], object], scratch: bool = False, standing: Iterable[Tensor] = ()) -> int:
    """The most bytes that tensors made by some work, and still alive, held at once.

    Args:
        work: done once.
        scratch: count what a convolution on the CPU takes meanwhile: its input, output and weights once more,
            laid out as oneDNN wants them, and on the way back the gradients of what it makes.
        standing: tensors that were there before, and are not counted.
    """
    tally = _Tally(scratch, {tensor.untyped_storage()._cdata for tensor in standing})
    with tally:
        work()
    return tally.peak


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages, and remembers the most."""

    def __init__(self, scratch: bool, standing: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scratch = scratch
        self.standing = standing
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self.standing:
                    continue
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self.living.setdefault(storage._cdata, (reference, storage.nbytes()))
        for key, (reference, _) in list(self.living.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self.living[key]
        self.now = sum(size for _, size in self.living.values())
        again = 0
        if self.scratch and "aten::conv" in func.name():
            laid = [each for each in (*args, *tree_leaves(result)) if isinstance(each, Tensor)]
            again = sum(each.numel() * each.element_size() for each in laid)
        self.peak = max(self.peak, self.now + again)
        return result
