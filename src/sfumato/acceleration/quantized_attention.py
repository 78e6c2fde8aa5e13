"""Quantized attention: queries, keys, weights and values in whole numbers of sixteen bits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.acceleration.native import native
from sfumato.core.acceleration import Acceleration
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.core.reverse import Plan, always

_WIDEST = 256


@dataclass(frozen=True)
class QuantizedAttention(Acceleration):
    """Attention of many places on a CPU, its products in whole numbers, twice as many at a time as floats.

    Keys and values are taken less their mean, which changes no weight and is added again. Queries, row by
    row, and keys, head by head, are rounded to as many steps as leave room for their products in 32 bits (12
    bits of 80 channels); weights to 16384ths of the largest so far; values, channel by channel, to 1023 of
    the largest; what a query says is summed block by block of keys, in floats. Results are off by some .2 %.

    It serves processors with VNNI, where there is a compiler (`acceleration.native`), in float32 and without
    gradients, attentions without a mask. All else is computed as before.

    Zhang et al. 2024, "SageAttention: Accurate 8-Bit Attention for Plug-and-Play Inference Acceleration",
    arXiv:2410.02367, section 4, for smoothed keys; Dao et al. 2022, "FlashAttention", arXiv:2205.14135, for
    the sums.

    Args:
        least: weights of a head, queries times keys, there have to be for it to be worth it.

    Raises:
        InvalidInput: not a number from 1.
    """

    least: int = 1 << 14

    def __post_init__(self) -> None:
        if self.least < 1:
            raise InvalidInput(f"{self.least} is no number from 1", where="quantized_attention.least")

    def plan(self, network: nn.Module) -> Plan | None:
        """None where there are no kernels."""
        return None if _kernel() is None else always(_Quantized(self.least))


@dataclass(frozen=True)
class _Quantized(Hooks):
    least: int

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in (q, k, v))
        wanted = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
        # A mask is of tokens: there is none where a map attends to itself and to nothing else.
        masked = context.condition.mask is not None and (site.kind != "self" or q.shape[2] != k.shape[2])
        # An edit may ask what else is said by the same keys, in rows of another width.
        alike = k.shape == v.shape and (*q.shape[:2], q.shape[3]) == (*k.shape[:2], k.shape[3])
        fits = alike and q.shape[3] % 2 == 0 and q.shape[3] <= _WIDEST
        fits = fits and q.shape[2] * k.shape[2] >= self.least
        if not plain or wanted or masked or not fits:
            return attend(q, k, v)
        return quantized(q, k, v)


def quantized(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: q (B, heads, N, D); k, v (B, heads, M, D) → (B, heads, N, D), float32.

    D is even, and rows lie side by side in memory, or are brought to.
    """
    kernels = _kernel()
    assert kernels is not None, "asked for by the hooks alone"
    (batch, heads, n, d), m = q.shape, k.shape[2]
    given = [each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v)]
    made = q.new_empty(batch, n, heads, d).transpose(1, 2)
    strides = [step for each in (*given, made) for step in each.stride()[:3]]
    scratch = torch.empty(batch * heads * kernels.scratch(m, d), dtype=torch.int16)
    kernels.attention(
        *(each.data_ptr() for each in (*given, made)),
        (ctypes.c_long * len(strides))(*strides),
        *(batch, heads, n, m, d, d**-0.5, scratch.data_ptr(), torch.get_num_threads()),
    )
    return made


@cache
def _kernel() -> Any:
    """The kernels, where the processor has what they are made of."""
    found: Any = native("quantized_attention.cpp")
    if found is None or not hasattr(found, "attention"):
        return None
    number, place = ctypes.c_long, ctypes.c_void_p
    found.scratch.argtypes, found.scratch.restype = [number, number], number
    found.attention.argtypes = [*[place] * 5, *[number] * 5, ctypes.c_float, place, ctypes.c_int]
    found.attention.restype = None
    return found
