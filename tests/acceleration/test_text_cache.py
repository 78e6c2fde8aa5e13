"""The text cache: the same bits, fewer products, and no prompt taken for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.acceleration.text_cache import Remembering
from sfumato.core.meta import on_meta
from sfumato.model import Model

ASKED: dict[str, Any] = {"prompt": "a red cat", "seed": 3, "size": 8, "steps": 4, "guidance": 2.0}


def layer(bias: bool = True) -> tuple[nn.Linear, Remembering, Tensor]:
    torch.manual_seed(1)
    linear = nn.Linear(6, 10, bias=bias)
    return linear, Remembering.of(linear), torch.randn(2, 3, 6)


def counted(linear: nn.Linear) -> list[int]:
    """How often it computes, in a list that grows."""
    calls: list[int] = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_tokens_are_computed_once(bias: bool) -> None:
    linear, remembering, tokens = layer(bias)
    expected, calls = linear(tokens), counted(linear)
    for _ in range(3):
        assert torch.equal(remembering(tokens.clone()), expected)
    assert len(calls) == 1
    other = tokens.clone()
    other[1, 2, 5] += 1e-6
    assert torch.equal(remembering(other), linear(other))
    assert not torch.equal(remembering(other), expected)
    # Tokens that change in place are no longer those that were seen.
    before = tokens.clone()
    tokens.mul_(2)
    assert torch.equal(remembering(tokens), linear(tokens))
    assert torch.equal(remembering(before), expected)
    assert remembering.state_dict().keys() == linear.state_dict().keys()


def test_weights_that_change_are_not_gone_past() -> None:
    linear, remembering, tokens = layer()
    with torch.no_grad():
        before = remembering(tokens)
        linear.weight.mul_(2)
        assert torch.equal(remembering(tokens), linear(tokens))
        assert not torch.equal(remembering(tokens), before)
        remembering.weight = nn.Parameter(linear.weight / 4)
        assert torch.equal(remembering(tokens), nn.functional.linear(tokens, linear.weight / 4, linear.bias))
    remembering(tokens).sum().backward()
    assert remembering.weight.grad is not None
    assert on_meta(remembering)(tokens.to("meta")).shape == (2, 3, 10)


@torch.no_grad()
def test_few_are_remembered() -> None:
    linear, remembering, tokens = layer()
    calls = counted(linear)
    for n in range(6):
        remembering(tokens + n)
    assert len(remembering.known) == 4
    remembering(tokens + 5)
    assert len(calls) == 6
    remembering(tokens)
    assert len(calls) == 7


def test_pictures_are_the_same_to_the_bit(
    text_unet: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is measured of layers is kept at home.
    monkeypatch.setenv("HOME", str(tmp_path))
    model = text_unet()
    plain = sfumato.generate(model, **ASKED).tensor
    quick = sfumato.optimize(model, "text_cache", size=8, prompt="a cat")
    layers = [each for each in quick.denoiser.network.modules() if isinstance(each, Remembering)]
    assert layers
    calls = [counted(each.computing[0]) for each in layers]
    assert torch.equal(sfumato.generate(quick, **ASKED).tensor, plain)
    assert {len(each) for each in calls} == {1}
    packed, both = (
        sfumato.generate(model, **ASKED, fast=fast).tensor for fast in ("prepack", ["prepack", "text_cache"])
    )
    torch.testing.assert_close(both, packed, rtol=0, atol=1e-5)
    assert not any(isinstance(each, Remembering) for each in model.denoiser.network.modules())
