"""What the trainer hands to accelerate, and what it writes of a model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.acceleration.quick_convolutions import quick_convolutions
from sfumato.acceleration.winograd import able
from sfumato.core.alone import Alone
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, MissingExtra, NotFinite
from sfumato.core.hooks import all_sites
from sfumato.core.noise import Noise
from sfumato.data.item import Dataset, collate
from sfumato.model import Model
from sfumato.training.ema import EMA
from sfumato.training.objectives.objective import TrainingObjective
from sfumato.training.recompute import recomputing
from sfumato.training.settings import Settings

_COMPILER = "needs a compiler of C++"
_LENGTH = 32
"""Tokens of a compiled network, or a multiple of it."""


class LossModule(nn.Module):
    """The objective's loss as one module, so that a distributed wrapper sees every parameter.

    Raises:
        InvalidInput: it is to be compiled and has no network that is called as such, or its blocks are to be
            computed twice and it has none.
        MissingExtra: it is to be compiled, or go by Winograd, and there is no compiler of C++.
    """

    def __init__(self, model: Model, objective: TrainingObjective, settings: Settings) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({**model.modules(), **objective.modules()})
        self.model, self.objective = model, objective
        trained = {id(parameter) for _, parameter in objective.parameters(model)}
        # Gradients of what is not trained would be waited for by the other processes.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if id(parameter) not in trained
        ]
        # Convolutions are faster with the channels innermost, in 16 bits by much and in float32 by a tenth
        # (measured on a CPU only).
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.winograd and not able():
            raise MissingExtra(
                f"Winograd {_COMPILER}", where="winograd", do="install g++ on Linux, or leave it out"
            )
        self._forward = _other_forward(model, settings)
        self._winograd = settings.winograd

    def forward(self, batch: Any, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        # Only here: samples and validation have shapes of their own, each of which would be compiled anew.
        network: Any = self.model.denoiser.network
        if self._forward is not None:
            network.forward = self._forward
        try:
            with quick_convolutions(network) if self._winograd else nullcontext():
                loss = self.objective.loss(self.model, batch, noise)
        finally:
            vars(network).pop("forward", None)
        return loss.value, loss.t, loss.parts["error"]


def _other_forward(model: Model, settings: Settings) -> Callable[..., Any] | None:
    """What the network does in training in place of its forward; None where that is its forward."""
    if settings.compile:
        if settings.recompute:
            raise InvalidInput("does not go with compile", where="recompute", do="leave one of them out")
        return _compiled(model)
    return recomputing(model.denoiser.network, settings.winograd) if settings.recompute else None


def _compiled(model: Model) -> Callable[..., Any]:
    if isinstance(model.denoiser, Alone):
        raise InvalidInput(f"an {model.denoiser.kind} is not compiled", where="compile", do="leave it out")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise MissingExtra(f"compiling {_COMPILER}", where="compile", do="install g++, or leave it out")
    network: Any = model.denoiser.network
    kinds = {site.kind for site in all_sites(network)}
    # A DiT's step is 5 % shorter where kernels are not called from Python and shapes are not asserted. Not so
    # a U-Net's, whose kernels take longer: no reason to be compiled for twice the minutes.
    from_cpp = "transformer" in kinds and "residual" not in kinds
    compiled: Any = torch.compile(network.forward, options={"cpp_wrapper": from_cpp, "size_asserts": False})

    def forward(x: Tensor, time: Tensor, condition: Condition) -> Any:
        return compiled(x, time, _of_one_length(condition))

    return forward


def _of_one_length(condition: Condition) -> Condition:
    """Tokens that are masked where there are no words, padded to a multiple of 32.

    Captions are of other lengths in every batch. What is compiled for any length is slower by a third than
    for one, and is compiled twice before that is found out.
    """
    tokens, mask = condition.tokens, condition.mask
    if tokens is None or mask is None or (more := -tokens.shape[1] % _LENGTH) == 0:
        return condition
    padded = F.pad(tokens, (0, 0, 0, more))
    return dataclasses.replace(condition, tokens=padded, mask=F.pad(mask, (0, more), value=False))


def accelerator_for(settings: Settings) -> Any:
    """Accelerate's object for these settings.

    Raises:
        MissingExtra: accelerate is not installed.
        InvalidInput: the batch does not fall into equal parts on all processes.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingExtra("training needs accelerate", do="pip install 'sfumato[train]'") from None
    # Precision is this file's own autocast: accelerate's is a setting of the whole process for good.
    accelerator = Accelerator(mixed_precision="no", cpu=settings.device == "cpu")
    if settings.batch % (settings.accumulate * accelerator.num_processes):
        raise InvalidInput(
            f"a batch of {settings.batch} does not fall into {settings.accumulate} parts "
            f"on {accelerator.num_processes} processes",
            where="batch",
        )
    return accelerator


def collate_of(data: Dataset) -> Callable[[Sequence[Any]], Any]:
    """How items of a data set become a batch: its own way, or the usual one."""
    if (own := getattr(data, "collate", None)) is not None:
        return own
    return collate


def weights(model: Model) -> dict[str, Tensor]:
    """All tensors of a model, named "network.…", "conditioner.…"; not copied."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, part in model.modules().items()
        for name, tensor in part.state_dict().items()
    }


def load_weights(model: Model, tensors: dict[str, Tensor]) -> None:
    """The inverse of weights."""
    for prefix, part in model.modules().items():
        part.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in part.state_dict()})


def refuse_non_finite(tensors: dict[str, Tensor]) -> None:
    """NotFinite if a tensor holds NaN or infinity, naming it."""
    for name, tensor in tensors.items():
        # A finite sum proves all terms finite, and is cheaper than looking at each.
        if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise NotFinite(
                "the weights are not finite and are not saved", where=name, do="lower the learning rate"
            )


def seed_dropout(seed: int, device: torch.device) -> None:
    """Set torch's own generators, which dropout draws from, on the CPU and the device in use."""
    # torch.manual_seed would also queue a call for each absent kind of accelerator, at every step.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def agree(accelerator: Any, *flags: bool) -> list[bool]:
    """What any process says, all do: else one would save while another trains on and waits for ever."""
    if accelerator.num_processes == 1:
        return list(flags)
    mine = torch.tensor([[float(flag) for flag in flags]], device=accelerator.device)
    return [bool(flag) for flag in accelerator.gather(mine).amax(0).tolist()]


def gather(accelerator: Any, tensor: Tensor) -> Tensor:
    """The rows of all processes."""
    return accelerator.gather(tensor) if accelerator.num_processes > 1 else tensor


def autocast(model: Model, precision: str) -> AbstractContextManager[Any]:
    """A context of the run's precision, on the model's device."""
    if precision == "float32" or (precision == "auto" and not multiplies_bf16(model.device)):
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the machine has products of such numbers; others emulate them, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16") or able.get("sve_bf16") or able.get("bf16"))


@contextmanager
def evaluating(model: Model, ema: EMA) -> Iterator[None]:
    """Inside, the model holds the first average, if there is one, and is in evaluation mode."""
    with ema.swapped() if len(ema) else nullcontext():
        for part in model.modules().values():
            part.eval()
        try:
            yield
        finally:
            for part in model.modules().values():
                part.train()
