"""OpenVINO: Intel's runtime computes the network, behind the same call."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.acceleration import Acceleration
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, MissingExtra
from sfumato.core.meta import on_meta

_KEPT = 4
"""Shapes of inputs that are compiled for: a walk has one or two."""
_LONG = ("tokens", "mask", "image_tokens")
"""Slots of as many tokens as a prompt has words: no new graph for each length."""
Told = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of what a network is given, x and time first; -1 is any number of tokens."""


@dataclass(frozen=True)
class Openvino(Acceleration):
    """The whole network as one graph of OpenVINO's, compiled for the shapes it is given.

    Compiling takes some tens of seconds for Stable Diffusion, and memory for its weights once more. What it
    cannot say is computed as before: calls with hooks (edits, caches, boxes) or hints, for gradients, in half
    precision, on another device, or with weights that have changed since. Autoencoders are left alone.

    Args:
        precision: in which it computes: "f32", or "bf16" or "f16", which change the pictures, on processors
            that have them.
        device: OpenVINO's name of it.

    Raises:
        InvalidInput: no such precision.
        MissingExtra: `pip install "sfumato[openvino]"` has not been done.
    """

    precision: str = "f32"
    device: str = "CPU"

    def __post_init__(self) -> None:
        if self.precision not in ("f32", "bf16", "f16"):
            raise InvalidInput(f"{self.precision!r} is none of f32, bf16 and f16", where="openvino.precision")

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """The network compiled for what `run` gives it; a module that `run` does not call is left alone."""
        core = _core()
        ghost, calls = on_meta(module), list[Told]()

        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            if (told := _told(*given)) is not None:
                calls.append(told)

        ghost.register_forward_pre_hook(note)
        with torch.no_grad():
            run(ghost)
        if not calls:
            return module
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        }
        made = Compiled(module, lambda model: core.compile_model(model, self.device, settings))
        for told in dict.fromkeys(calls):
            made.compiled(told)
        return made


class Compiled(nn.Module):
    """A network whose plain calls are computed by OpenVINO; it has the network's parameters and parts."""

    def __init__(self, network: nn.Module, compile: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        self._compile, self._known = compile, dict[Told, Any]()
        self._weights = _state(network)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition → (B, C, H, W)."""
        told = _told(x, time, condition)
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
        if told is None or not plain or self.training or self._weights != _state(self.network):
            made: Tensor = self.network(x, time, condition)
            return made
        given = [x, time, *(getattr(condition, name) for name, _ in told[2:])]
        numbers = [each.detach().to(_element(each)).contiguous().numpy() for each in given]
        return torch.from_numpy(self.compiled(told)(numbers)[0]).clone()

    def compiled(self, told: Told) -> Callable[[Any], Any]:
        """The graph for what is told, compiled now if it is not yet; the oldest goes where there are many."""
        if told not in self._known:
            if len(self._known) == _KEPT:
                del self._known[next(iter(self._known))]
            self._known[told] = self._compile(_converted(self.network, told))
        return self._known[told]

    def __deepcopy__(self, memo: Any) -> nn.Module:
        # What is learnt from a copy, on the meta device above all, is learnt from the network's.
        return copy.deepcopy(self.network, memo)


class _Flat(nn.Module):
    """A network called with its condition's tensors one by one."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor, time: Tensor, *told: Tensor) -> Tensor:
        made: Tensor = self.network(x, time, Condition(**dict(zip(self.names, told, strict=True))))  # type: ignore[arg-type]
        return made


def _converted(network: nn.Module, told: Told) -> Any:
    """OpenVINO's model of the network, for inputs of these shapes."""
    flat = _Flat(network, tuple(name for name, _ in told[2:]))
    example = tuple(
        torch.ones([7 if side < 0 else side for side in shape], dtype=_kind(name)) for name, shape in told
    )
    with torch.no_grad(), warnings.catch_warnings():
        # Shapes are compared by the way, and are what they are.
        warnings.filterwarnings("ignore", message="Converting a tensor")
        return runtime().convert_model(flat, example_input=example, input=[list(shape) for _, shape in told])


def _told(x: Tensor, time: Tensor, condition: Condition) -> Told | None:
    """Names and shapes of all that a network is given; None where that is more than tensors of rows."""
    if condition.hooks is not None or condition.hints or condition.residuals:
        return None
    slots = [(each.name, getattr(condition, each.name)) for each in fields(condition)]
    rows = [(name, value) for name, value in slots if isinstance(value, Tensor) and name != "branch"]
    named = [("x", x), ("time", time), *rows]
    return tuple((name, _shape(name, value)) for name, value in named)


def _shape(name: str, value: Tensor) -> tuple[int, ...]:
    rows, *sides = value.shape
    return (rows, -1, *sides[1:]) if name in _LONG else (rows, *sides)


def _kind(name: str) -> torch.dtype:
    return torch.bool if name == "mask" else torch.float32


def _element(tensor: Tensor) -> torch.dtype:
    return torch.bool if tensor.dtype == torch.bool else torch.float32


def _state(network: nn.Module) -> tuple[tuple[int, int], ...]:
    held = (*network.parameters(), *network.buffers())
    return tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in held)


@cache
def _core() -> Any:
    """What compiles, one for the life of the process.

    It gives the thread it is first used in a stack for signals to be handled on, and takes it from whatever
    thread it goes in: left to the collector, the next interrupt of the first is a fault.
    """
    return runtime().Core()


def runtime() -> Any:
    """OpenVINO, without the part of it that reports its use to its makers unless it is told not to.

    Raises:
        MissingExtra: it is not installed.
    """
    reporting = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError:
        raise MissingExtra("OpenVINO is not installed", do='pip install "sfumato[openvino]"') from None
    finally:
        del sys.modules["openvino_telemetry"]
        if reporting is not None:
            sys.modules["openvino_telemetry"] = reporting
    return openvino
