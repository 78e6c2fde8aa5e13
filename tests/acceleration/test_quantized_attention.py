"""Attention in sixteen bits: near to that in floats, which it leaves alone where it is not meant for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sfumato
from sfumato.acceleration.quantized_attention import QuantizedAttention, _kernel, quantized
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.model import Model

needs_vnni = pytest.mark.skipif(_kernel() is None, reason="no VNNI, or no compiler")
SITE, CROSS = Site("attention", "self"), Site("attention", "cross")


def drawn(*sizes: int, seed: int = 1, by_row: bool = True) -> Tensor:
    """(B, heads, N, D), rows of a layer's (B, N, heads D) or each head by itself."""
    batch, heads, n, d = sizes
    draw = torch.Generator().manual_seed(seed)
    if by_row:
        return torch.randn(batch, n, heads, d, generator=draw).transpose(1, 2)
    return torch.randn(sizes, generator=draw)


@needs_vnni
@pytest.mark.parametrize("d", [2, 8, 40, 64, 80, 96, 160, 256])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (24, 128), (25, 129), (130, 300)])
def test_it_is_near_to_attention(n: int, m: int, d: int) -> None:
    """Of every number of queries, keys and channels that stands at an edge of the kernel's tiles."""
    for by_row in (True, False):
        q, k, v = (drawn(2, 3, rows, d, seed=rows, by_row=by_row) for rows in (n, m, m + 1))
        v = v[:, :, :m]
        wanted = F.scaled_dot_product_attention(q, k, v)
        assert float((quantized(q, k, v) - wanted).norm() / wanted.norm()) < 4e-3


@needs_vnni
def test_a_common_offset_costs_nothing() -> None:
    """Added to all keys it changes no weight, and to all values only what is said."""
    q, k, v = (drawn(1, 2, 200, 40, seed=seed) for seed in (1, 2, 3))
    wanted = F.scaled_dot_product_attention(q, k, v)
    far = quantized(q, k + 50, v + 50) - 50
    assert float((far - wanted).norm() / wanted.norm()) < 4e-3


@needs_vnni
def test_one_key_far_above_all_is_what_is_said() -> None:
    """Its weight is 1, so that its value is said to within its own rounding, and scores of thousands fit."""
    k, v = drawn(1, 1, 300, 64, seed=1), drawn(1, 1, 300, 64, seed=2)
    said = quantized(400 * k[:, :, :7], k, v)
    step = (v - v.mean(2, keepdim=True)).abs().amax(2, keepdim=True) / 1023
    assert bool(((said - v[:, :, :7]).abs() <= 0.51 * step + 1e-6).all())


@needs_vnni
def test_keys_alike_are_heeded_alike() -> None:
    """The mean of all values is said: what it leaves over sums to nothing."""
    q, v = drawn(1, 2, 30, 40), torch.randint(-3, 4, (1, 2, 301, 40)).float()
    said = quantized(q, torch.ones(1, 2, 301, 40), v)
    torch.testing.assert_close(said, v.mean(2, keepdim=True).expand_as(said), rtol=0, atol=2e-3)


@needs_vnni
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(which: int, bad: float) -> None:
    given = [drawn(1, 2, 50, 8, seed=seed).clone() for seed in (1, 2, 3)]
    given[which][0, 1, 20, 3] = bad
    said = quantized(*given)
    assert bool(said[0, 0].isfinite().all())
    assert bool(said[0, 1].isnan().any())


@needs_vnni
def test_threads_change_nothing() -> None:
    q, k, v = (drawn(2, 4, 257, 40, seed=seed) for seed in (1, 2, 3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = quantized(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(one, quantized(q, k, v))
    finally:
        torch.set_num_threads(before)


class Asked(Hooks):
    """Whether PyTorch's attention was asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.times += 1
        return F.scaled_dot_product_attention(q, k, v)


@needs_vnni
@pytest.mark.parametrize(
    ("sizes", "more", "plain"),
    [
        ((1, 2, 300, 8), {}, False),
        ((1, 2, 128, 8), {}, False),
        ((1, 2, 127, 8), {}, True),
        ((1, 2, 300, 9), {}, True),
        ((1, 2, 300, 258), {}, True),
        ((1, 2, 300, 8), {"dtype": torch.bfloat16}, True),
        ((1, 2, 300, 8), {"requires_grad": True}, True),
        ((1, 2, 300, 8), {"mask": torch.ones(1, 300, dtype=torch.bool)}, False),
        ((1, 2, 300, 8), {"mask": torch.ones(1, 300, dtype=torch.bool), "site": CROSS}, True),
        ((1, 2, 300, 8), {"mask": torch.ones(1, 10, dtype=torch.bool), "tokens": 10}, True),
        ((1, 2, 300, 8), {"tokens": 10}, False),
        ((1, 2, 300, 8), {"site": CROSS, "only": 77}, False),
        ((1, 2, 300, 8), {"site": CROSS, "only": 7}, True),
        ((1, 2, 300, 8), {"values": 6}, True),
    ],
)
def test_what_it_is_not_for_goes_the_usual_way(sizes: Any, more: dict[str, Any], plain: bool) -> None:
    plan = QuantizedAttention().plan(torch.nn.Identity())
    assert plan is not None
    hooks: Any = plan(Level(0.5, 0.5))
    said = {"mask": None, "site": SITE, "tokens": 0, "only": 310, "values": 258} | more
    mask, site, tokens, only, values = (
        said.pop(name) for name in ("mask", "site", "tokens", "only", "values")
    )
    x = torch.randn(sizes, **said)
    told = torch.cat((x[:, :, :tokens], x), dim=2)[:, :, :only]
    asked = Asked()
    attend: Attend = asked
    hooks.attention(
        site, Context(torch.zeros(1, 1), Condition(mask=mask)), attend, x, told, told[..., :values]
    )
    assert asked.times == plain


@pytest.fixture(scope="module")
def model() -> Model:
    return sfumato.load("emoji")


def test_pictures_are_nearly_the_same(model: Model) -> None:
    """On the embedded model, every map of it; without VNNI they are the same."""
    asked: dict[str, Any] = {
        "prompt": ["a red apple, noto", "a cat, fluent 3d"],
        "seeds": [3, 4],
        "steps": 12,
    }
    plain = sfumato.generate(model, **asked).tensor
    quick = sfumato.generate(model, fast={"name": "quantized_attention", "least": 16}, **asked).tensor
    error = float((quick - plain).square().mean())
    assert error == 0 if _kernel() is None else 0 < error < 1e-3


def test_edits_see_it_as_they_see_any_attention(model: Model) -> None:
    """Words alike still give pictures alike."""
    asked: dict[str, Any] = {"prompt": ["a red apple, noto"] * 2, "seeds": [5, 5], "steps": 8}
    fast = {"name": "quantized_attention", "least": 16}
    made = sfumato.generate(model, edit="prompt_to_prompt", fast=fast, **asked).tensor
    assert torch.equal(made[0], made[1])


def test_without_kernels_it_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.acceleration.quantized_attention._kernel", lambda: None)
    assert QuantizedAttention().plan(torch.nn.Identity()) is None


def test_settings_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"quantized_attention.least: 0 is no number from 1"):
        QuantizedAttention(least=0)
