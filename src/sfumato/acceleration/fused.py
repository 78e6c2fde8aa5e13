"""Fused: what stands between a network's products, in one pass through memory where PyTorch takes several."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.acceleration.native import native
from sfumato.core.acceleration import Acceleration
from sfumato.core.meta import sharing
from sfumato.networks.layers.normalization import NormSiLU
from sfumato.networks.layers.spatial_transformer import GEGLU


@dataclass(frozen=True)
class Fused(Acceleration):
    """Group norms before a SiLU are computed with it, and the gates of feed-forwards with what they gate.

    A map is read twice and written once, where it was read three times and written twice; results differ by
    rounding alone (some 1e-6 of the largest). On a CPU, in float32 and without gradients, of maps whose
    channels stand last, as `prepack` has them; all else is computed as before. It takes a compiler
    (`acceleration.native`): without one nothing is changed.
    """

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """A copy that shares the weights; the module itself where there is nothing of the kind."""
        found = {name: part for name, part in module.named_modules() if type(part) in (NormSiLU, GEGLU)}
        if not found or _kernels() is None:
            return module
        made = sharing(module)
        for name, part in found.items():
            parent, _, own = name.rpartition(".")
            new = FusedNormSiLU.of(part) if isinstance(part, NormSiLU) else FusedGEGLU.of(made, name)
            setattr(made.get_submodule(parent), own, new)
        return made


class FusedNormSiLU(NormSiLU):
    """A group norm and a SiLU that share another's weights."""

    @staticmethod
    def of(norm: NormSiLU) -> FusedNormSiLU:
        """Of one as it is."""
        made = FusedNormSiLU(norm.num_channels, norm.eps, norm.num_groups)
        made.weight, made.bias, made.training = norm.weight, norm.bias, norm.training
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if not last or not _plain(input, self.weight, self.bias):
            return super().forward(input)
        out, (batch, channels, *sides) = torch.empty_like(input), input.shape
        places = [each.data_ptr() for each in (input, out, self.weight, self.bias)]
        sizes = (batch, sides[0] * sides[1], channels, self.num_groups)
        _kernels().norm_silu(*places, *sizes, self.eps, torch.get_num_threads())
        return out


class FusedGEGLU(GEGLU):
    """A GEGLU with the layer of another."""

    @staticmethod
    def of(network: nn.Module, name: str) -> FusedGEGLU:
        """Of that of this name."""
        proj = network.get_submodule(f"{name}.proj")
        assert isinstance(proj, nn.Linear)
        with torch.device("meta"):
            made = FusedGEGLU(1, 1)
        made.proj = proj
        return made

    def forward(self, h: Tensor) -> Tensor:
        """(.., width) → (.., out)."""
        both = self.proj(h)
        if not both.is_contiguous() or not _plain(both):
            return self.gated(both)
        out = both.new_empty(*both.shape[:-1], both.shape[-1] // 2)
        rows = out.shape[:-1].numel()
        _kernels().gated(both.data_ptr(), out.data_ptr(), rows, out.shape[-1], torch.get_num_threads())
        return out


def _plain(*given: Tensor) -> bool:
    """Whether all are numbers of a CPU in float32, of which nobody asks gradients."""
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in given)
    return not wanted and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in given)


@cache
def _kernels() -> Any:
    found: Any = native("fused.cpp")
    if found is not None:
        number, place = ctypes.c_long, ctypes.c_void_p
        found.gated.argtypes = [*[place] * 2, *[number] * 2, ctypes.c_int]
        found.norm_silu.argtypes = [*[place] * 4, *[number] * 4, ctypes.c_float, ctypes.c_int]
        found.gated.restype = found.norm_silu.restype = None
    return found
