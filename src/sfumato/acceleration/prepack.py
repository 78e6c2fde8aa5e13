"""Prepacking: weights laid out once as this machine multiplies them fastest."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.acceleration.packed import fastest, packable, packed, ways
from sfumato.core.acceleration import Acceleration
from sfumato.core.atomic import write_text
from sfumato.core.errors import InvalidInput
from sfumato.core.meta import on_meta, sharing

KEPT = Path("~/.cache/sfumato/prepack.json")
"""Where it is remembered which way was the fastest, by machine and layer."""
_WAYS = 2
"""One more whenever a way becomes faster: what is remembered of the ways before is of no use."""


@dataclass(frozen=True)
class Prepack(Acceleration):
    """Every convolution and linear layer on a CPU goes the way that is fastest on this machine.

    PyTorch brings the weights of a convolution into oneDNN's order at every call. Here each layer's are laid
    out once, whichever way takes the least time for the maps it is given: oneDNN's, a plain matrix product,
    or, of three by three and where there is a compiler (`acceleration.native`), Winograd's with a quarter of
    the multiplications. Which, is measured on first use, layer by layer, and remembered in a file. Results
    differ by rounding alone (some 1e-5 of the largest).

    Laid out weights are kept beside the network's own: as many bytes again, of Winograd's four times. A layer
    whose weights change later, on another device, of another type or asked for gradients, is computed as it
    was before; so are layers of a half-precision network.

    Args:
        winograd: whether that may be chosen, which takes memory.
        int8: whether products may be of whole numbers of eight bits where that is faster still, with an error
            of a few parts in a hundred; a receipt (`sfumato bench`) says of how many.
        kept: the file of choices; None to measure anew.
    """

    winograd: bool = True
    int8: bool = False
    kept: str | None = str(KEPT)

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """A copy that shares the weights; the module itself where nothing is gained."""
        shapes = _shapes(module, run)
        layers = {name: layer for name, layer in module.named_modules() if name in shapes and packable(layer)}
        memory = _Choices(self.kept)
        with torch.inference_mode(False), torch.no_grad():
            unwanted = {name for name in ("winograd", "int8") if not getattr(self, name)}
            fast = {name: memory.way(layer, shapes[name], unwanted) for name, layer in layers.items()}
            memory.keep()
            if not any(fast.values()):
                return module
            # One convolution that leaves channels where they were has every sum after it bring them there.
            chosen = {name: way for name, way in fast.items() if way or isinstance(layers[name], nn.Conv2d)}
            made = sharing(module)

        def lay_out(name: str) -> nn.Module:
            # What a thread may do with gradients is its own.
            with torch.inference_mode(False), torch.no_grad():
                return packed(layers[name], chosen[name], shapes[name])

        # Most of it is memory that is touched for the first time, which one thread does alone.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for name, new in zip(chosen, pool.map(lay_out, chosen), strict=True):
                parent, _, own = name.rpartition(".")
                setattr(made.get_submodule(parent), own, new)
        return made


def _shapes(module: nn.Module, run: Callable[[Any], object]) -> dict[str, tuple[int, ...]]:
    """Of each layer that `run` has computed the shape of the largest input it is given."""
    ghost, shapes = on_meta(module), dict[str, tuple[int, ...]]()

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            shape = tuple(given[0].shape)
            if math.prod(shape) > math.prod(shapes.get(name, (0,))):
                shapes[name] = shape

        return hook

    for name, layer in ghost.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(note(name))
    with torch.no_grad():
        run(ghost)
    return shapes


class _Choices:
    """Which way was the fastest, by layer, on this machine; read from a file and kept in it."""

    def __init__(self, file: str | None) -> None:
        self.file = None if file is None else Path(file).expanduser()
        self.machine = (
            f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ways {_WAYS}"
        )
        self.known: dict[str, dict[str, str]] = {}
        self.new = False
        try:
            told = json.loads(self.file.read_text("utf-8")) if self.file is not None else {}
        except (OSError, ValueError):
            told = {}
        if isinstance(told, dict) and all(isinstance(each, dict) for each in told.values()):
            self.known = told
        self.own = self.known.setdefault(self.machine, {})

    def way(self, layer: Any, shape: tuple[int, ...], unwanted: set[str]) -> str:
        """As it is known, or measured now."""
        able = [name for name in ways(layer, shape) if name and name not in unwanted]
        key = f"{layer} of {'x'.join(map(str, shape))}: {', '.join(able)}"
        if self.own.get(key) not in ("", *able):
            self.own[key] = fastest(layer, shape, able)
            self.new = True
        return self.own[key]

    def keep(self) -> None:
        """Where no file can be written it is measured anew another time."""
        if self.file is None or not self.new:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, json.dumps(self.known, indent=1, sort_keys=True))
        except (OSError, InvalidInput):
            self.file = None


def _processor() -> str:
    """What the machine calls its processor, and its number, since several have one name."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        told = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        return f"{told['model name']}, {told.get('model', '')}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
