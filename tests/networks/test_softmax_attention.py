"""Softmax attention: 16-bit rows in training are computed with in float32, and only there."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.networks.layers.attention import softmax_attention


def rows(dtype: torch.dtype) -> list[Tensor]:
    noise = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=noise).to(dtype).requires_grad_() for n in (5, 7, 7)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_in_training_16_bit_rows_are_computed_with_in_float32(dtype: torch.dtype, causal: bool) -> None:
    mask = None if causal else torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    mine, theirs = rows(dtype), [each.detach().float().requires_grad_() for each in rows(dtype)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = softmax_attention(*mine, mask, causal)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask, is_causal=causal)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    out.float().square().sum().backward()
    expected.to(dtype).float().square().sum().backward()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.grad, other.grad.to(dtype))


@torch.no_grad()
def test_elsewhere_it_is_torchs_own() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        q, k, v = rows(dtype)
        assert torch.equal(softmax_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_it_takes_any_number_of_keys_and_agrees() -> None:
    compiled = torch.compile(softmax_attention)
    noise = torch.Generator().manual_seed(0)
    for keys in (5, 7, 9):
        q, k, v = (torch.randn(2, 3, n, 8, generator=noise).bfloat16() for n in (6, keys, keys))
        mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
        mask[1, ..., 3:] = False
        grads = []
        for function in (compiled, softmax_attention):
            leaves = [each.clone().requires_grad_() for each in (q, k, v)]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = function(*leaves, mask)
            out.float().square().sum().backward()
            grads.append([out.detach(), *(each.grad for each in leaves)])
        for one, other in zip(*grads, strict=True):
            assert (one - other).float().norm() < 0.02 * other.float().norm()
