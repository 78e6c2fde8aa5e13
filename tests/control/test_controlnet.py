"""ControlNet: published sizes, parity with diffusers, and that a fresh one changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from control_recipes import PARITY, asked, twins
from network_recipes import normal, randomised

from sfumato.checkpoints.controlnet_keys import from_diffusers, is_diffusers, table
from sfumato.control.controlnet import PUBLISHED, ControlNet
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.networks.sd_unet import SDUNet

SIZES = {"sd1": 361_279_120, "sd2": 364_228_240, "sdxl": 1_251_014_160}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_published_parameter_counts(name: str) -> None:
    assert set(SIZES) == set(PUBLISHED)
    with torch.device("meta"):
        control = ControlNet.published(name)
    assert sum(p.numel() for p in control.parameters()) == SIZES[name]
    assert control.factor == 8


def test_the_released_shapes() -> None:
    """Thirteen residuals of Stable Diffusion 1 at 512 pixels, by the maps they are added to."""
    with torch.device("meta"):
        control = ControlNet.published("sd1")
        condition = Condition(tokens=torch.empty(1, 77, 768))
        found = control(torch.empty(1, 4, 64, 64), torch.empty(1), condition, torch.empty(1, 3, 512, 512))
    widths, sides = [320] * 4 + [640] * 3 + [1280] * 6, [64] * 3 + [32] * 3 + [16] * 3 + [8] * 4
    assert [tuple(each.shape) for each in found] == [
        (1, width, side, side) for width, side in zip(widths, sides, strict=True)
    ]
    assert len(control.state_dict()) == 340
    with pytest.raises(NotFound, match="sdxl"):
        ControlNet.published("sd_xl")


@pytest.mark.parametrize("name", sorted(PARITY))
@torch.no_grad()
def test_parity_with_diffusers(name: str) -> None:
    control, reference, _ = twins(PARITY[name])
    x, time, condition, hint, told = asked(control)
    ours = control(x, time, condition, hint)
    sides, middle = reference(x, time, condition.tokens, hint, return_dict=False, **told)
    assert len(ours) == len(sides) + 1
    for mine, theirs in zip(ours, (*sides, middle), strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(PARITY))
def test_names_go_both_ways(name: str) -> None:
    control, reference, _ = twins(PARITY[name])
    theirs = reference.state_dict()
    rows = table(control.state_dict())
    assert {row.theirs[0] for row in rows} == set(theirs)
    assert set(from_diffusers(theirs)) == set(control.state_dict())
    assert is_diffusers(theirs)
    assert not is_diffusers(control.state_dict())


@torch.no_grad()
def test_a_fresh_control_copies_the_way_down_and_changes_nothing() -> None:
    network = randomised(SDUNet(**PARITY["sd1"]))
    control = ControlNet.of(network)
    own, copied = network.state_dict(), control.state_dict()
    shared = {name for name in copied if name in own}
    assert {name.split(".")[0] for name in shared} == {"time_embed", "input_blocks", "middle_block"}
    assert all(torch.equal(own[name], copied[name]) for name in shared)
    assert all(own[name].data_ptr() != copied[name].data_ptr() for name in shared)
    x, time, condition, hint, _ = asked(control)
    x, hint, condition = x.float(), hint.float(), condition.to(torch.float32)
    residuals = control(x, time, condition, hint)
    assert not any(each.any() for each in residuals)
    plain = network(x, time, condition)
    assert torch.equal(network(x, time, replace(condition, residuals=residuals)), plain)


def test_the_first_step_moves_zero_convolutions_alone() -> None:
    """∂y/∂w = x of a zero convolution, and ∂y/∂x = w = 0."""
    control = ControlNet.of(randomised(SDUNet(**PARITY["sd1"])))
    x, time, condition, hint, _ = asked(control)
    residuals = control(x.float(), time, condition.to(torch.float32), hint.float())
    sum(each.square().sum() + each.sum() for each in residuals).backward()  # type: ignore[union-attr]
    moved = {name for name, p in control.named_parameters() if p.grad is not None and p.grad.any()}
    zero = {name for name in control.state_dict() if name.startswith(("zero_convs.", "middle_block_out."))}
    assert moved == zero


@pytest.mark.parametrize("factor, count", [(1, 2), (2, 4), (4, 6), (8, 8)])
def test_hints_of_other_factors(factor: int, count: int) -> None:
    control = ControlNet.of(SDUNet(**PARITY["sd1"]), hint_channels=1, factor=factor)
    convolutions = [each for each in control.input_hint_block if isinstance(each, torch.nn.Conv2d)]
    assert (control.factor, len(convolutions)) == (factor, count)
    condition = Condition(tokens=normal(1, 3, 12))
    found = control(normal(1, 4, 8, 8), torch.ones(1), condition, normal(1, 1, 8 * factor, 8 * factor))
    assert found[0].shape == (1, 32, 8, 8)


@torch.no_grad()
def test_what_varies_in_a_hint_arrives() -> None:
    """The variance over places is kept from layer to layer; PyTorch's own weights leave a hundredth of it."""
    torch.manual_seed(1)
    control = ControlNet.of(SDUNet(**PARITY["sd1"]), factor=8)
    h, deviations = normal(4, 3, 64, 64), []
    for layer in control.input_hint_block[:-1]:
        h = layer(h)
        if isinstance(layer, torch.nn.Conv2d):
            deviations.append(float(h.std(dim=(2, 3)).mean()))
    assert len(deviations) == 7
    assert min(deviations) > 0.3 * max(deviations)


def test_what_does_not_fit_is_named() -> None:
    control = ControlNet.of(SDUNet(**PARITY["sd1"]))
    x, time, condition, hint, _ = asked(control)
    with pytest.raises(InvalidInput, match=r"expected a hint \(2, 3, 64, 128\), got \(2, 3, 64, 64\)"):
        control(x, time, condition, hint[..., :64])
    with pytest.raises(InvalidInput, match="6 is no power of 2"):
        ControlNet.of(SDUNet(**PARITY["sd1"]), factor=6)
    with pytest.raises(InvalidInput, match="Linear has no control"):
        ControlNet.of(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
