"""T2I-Adapter: published sizes, and parity with diffusers' adapters and with its U-Net that heeds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from control_recipes import PARITY
from network_recipes import drawn, normal, randomised
from torch import Tensor

from sfumato.checkpoints.sd_unet_config import to_config
from sfumato.checkpoints.sd_unet_keys import table
from sfumato.checkpoints.t2i_adapter import from_diffusers
from sfumato.checkpoints.translation import to_theirs
from sfumato.control.controlnet import ControlNet
from sfumato.control.t2i_adapter import PUBLISHED, T2IAdapter
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.networks.controlled import Controlled
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build, describe

SIZES = {
    "sd1": 77_369_280,
    "sd1_grey": 77_000_640,
    "sd1_light": 18_689_200,
    "sdxl": 79_028_160,
    "sdxl_grey": 77_553_600,
}
THEIRS = {"full": "full_adapter", "light": "light_adapter", "full_xl": "full_adapter_xl"}
TWO = {"multipliers": (1, 2), "blocks": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "sd1": {**PARITY["sd1"], "blocks": 2},
    "sdxl": {**PARITY["sdxl"], "blocks": 2},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"channels": (32, 64, 64), "stages": (2, 5, 8), "hint_channels": 1},
    "light": {"kind": "light", "channels": (32, 64), "blocks": 4, "stages": (2, 5, 8)},
    "full_xl": {"kind": "full_xl", "channels": (32, 64, 64, 64), "unshuffle": 16, "stages": (3, 5, 8, 9)},
}


def twins(name: str) -> tuple[T2IAdapter, Any]:
    """Our adapter and diffusers' with the same random weights."""
    import diffusers

    ours = T2IAdapter(**ADAPTERS[name]).eval()
    reference = diffusers.T2IAdapter(
        in_channels=ours.hint_channels,
        channels=list(ours.channels),
        num_res_blocks=ours.blocks,
        downscale_factor=ours.unshuffle,
        adapter_type=THEIRS[ours.kind],
    ).eval()
    reference.load_state_dict(drawn(reference.state_dict(), 1))
    ours.load_state_dict(from_diffusers(reference.state_dict(), ours.blocks))
    return ours.double(), reference.double()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_published_parameter_counts(name: str) -> None:
    """As many as diffusers' of the same settings, and of the released files, 4 bytes each and 2 in XL's."""
    import diffusers

    assert set(SIZES) == set(PUBLISHED)
    with torch.device("meta"):
        adapter = T2IAdapter.published(name)
        reference = diffusers.T2IAdapter(
            in_channels=adapter.hint_channels,
            channels=list(adapter.channels),
            num_res_blocks=adapter.blocks,
            downscale_factor=adapter.unshuffle,
            adapter_type=THEIRS[adapter.kind],
        )
        adapter.check_fits(SDUNet.published(name.split("_")[0]))
    assert sum(p.numel() for p in adapter.parameters()) == SIZES[name]
    assert sum(p.numel() for p in reference.parameters()) == SIZES[name]
    assert adapter.factor == 8


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_parity_of_the_maps(name: str) -> None:
    """Also where a side of a map is odd when it is halved."""
    ours, reference = twins(name)
    hint = normal(2, ours.hint_channels, 48 * 2, 80 * 2).double()
    made = list(ours.maps(hint))
    theirs = reference(hint)
    assert len(made) == len(theirs) == len(ours.stages)
    for mine, other in zip(made, theirs, strict=True):
        assert other.std() > 0.01
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("name, network", [("full", "sd1"), ("light", "sd1"), ("full_xl", "sdxl")])
def test_parity_of_the_network_that_heeds_them(name: str, network: str) -> None:
    """As diffusers' U-Net adds them, alone and beside a ControlNet's residuals."""
    from diffusers import UNet2DConditionModel

    adapter, other = twins(name)
    own = randomised(SDUNet(**NETWORKS[network]))
    reference = UNet2DConditionModel(**{k: v for k, v in to_config(own).items() if not k.startswith("_")})
    reference.load_state_dict(to_theirs(table(own.state_dict()), own.state_dict()))
    own, reference = own.double(), reference.double().eval()
    x, time = normal(2, 4, 16, 32).double(), torch.tensor([3.0, 950.0])
    tokens, hint = (
        normal(2, 9, 12, seed=1).double(),
        normal(2, adapter.hint_channels, 128, 256, seed=3).double(),
    )
    told: dict[str, Any] = {}
    vector = None
    if own.vector:
        pooled, sizes = normal(2, 8, seed=2), torch.tensor([[512.0, 768, 0, 64, 1024, 1000]] * 2)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        vector = torch.cat((pooled, sinusoid(sizes.flatten(), 256).view(2, -1)), dim=1)
    condition = Condition(tokens=tokens, vector=vector)
    plain = own(x, time, condition)
    for strength in (1.0, 0.4):
        maps = [strength * each for each in other(hint)]
        expected = reference(x, time, tokens, down_intrablock_additional_residuals=[*maps], **told).sample
        scales = torch.tensor([[[strength, 1.0, 0.0]]] * 2)
        both = Controlled(own, (adapter,)).eval()
        mine = both(x, time, replace(condition, hints=(hint,), hint_scales=scales))
        assert (mine - plain).abs().max() > 0.01
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    silent = both(x, time, replace(condition, hints=(None,)))
    torch.testing.assert_close(silent, plain, rtol=1e-12, atol=1e-12)
    control = randomised(ControlNet.of(own, hint_channels=adapter.hint_channels)).double()  # type: ignore[arg-type]
    residuals = control(x, time, condition, hint)
    expected = reference(
        x,
        time,
        tokens,
        down_block_additional_residuals=residuals[:-1],
        mid_block_additional_residual=residuals[-1],
        down_intrablock_additional_residuals=[each.clone() for each in other(hint)],
        **told,
    ).sample
    summed = Controlled(own, (control, adapter)).eval()(x, time, replace(condition, hints=(hint, hint)))
    torch.testing.assert_close(summed, expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_two_adapters_are_summed() -> None:
    first, _ = twins("full")
    second = randomised(T2IAdapter(**ADAPTERS["full"]), 9).double()
    own = randomised(SDUNet(**NETWORKS["sd1"])).double()
    x, time = normal(1, 4, 8, 8).double(), torch.ones(1)
    hints: list[Tensor] = [normal(1, 1, 64, 64, seed=seed).double() for seed in (1, 2)]
    condition = Condition(tokens=normal(1, 9, 12).double())
    made = Controlled(own, (first, second))(x, time, replace(condition, hints=tuple(hints)))

    class Both(torch.nn.Module):
        stages, factor = first.stages, 8

        def forward(self, x: Tensor, time: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
            return tuple(a + b for a, b in zip(first.maps(hints[0]), second.maps(hints[1]), strict=True))

    at_once = Controlled(own, (Both(),))(x, time, replace(condition, hints=(hints[0],)))  # type: ignore[arg-type]
    torch.testing.assert_close(made, at_once, rtol=1e-10, atol=1e-10)


def test_a_fresh_one_fits_its_network_and_learns_alone() -> None:
    network = randomised(SDUNet(**PARITY["sd1, two blocks"]))
    adapter = T2IAdapter.of(network, hint_channels=1, factor=2)
    assert (adapter.stages, adapter.channels) == ((2, 5, 8), (32, 64, 64))
    both = Controlled(network, (adapter,))
    condition = Condition(tokens=normal(1, 9, 12), hints=(normal(1, 1, 16, 16),))
    both(normal(1, 4, 8, 8), torch.ones(1), condition).square().mean().backward()
    moved = {name for name, p in both.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {f"held.0.{name}" for name in adapter.state_dict()}
    described = describe(both)
    assert describe(build("network", described)) == described


def test_what_does_not_fit_is_one_sentence() -> None:
    adapter = T2IAdapter(**ADAPTERS["full"])
    adapter.check_fits(SDUNet(**NETWORKS["sd1"]))
    with pytest.raises(InvalidInput, match=r"maps of \(32, 64, 64\) channels for a SDUNet with \(32, 64\)"):
        adapter.check_fits(SDUNet(**PARITY["sd1"]))
    with pytest.raises(InvalidInput, match=r"expected a hint \(1, 1, 64, 64\), got \(1, 3, 64, 64\)"):
        adapter(torch.zeros(1, 4, 8, 8), torch.zeros(1), Condition(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(InvalidInput, match="2 stages for 4 maps"):
        T2IAdapter(stages=(1, 2))
    with pytest.raises(InvalidInput, match="Linear has no adapter"):
        T2IAdapter.of(torch.nn.Linear(2, 2))
