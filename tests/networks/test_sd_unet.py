"""The latent U-Net: published sizes, parity with diffusers, what its slots and settings mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from network_recipes import drawn, normal, randomised
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sfumato.checkpoints.sd_unet_config import to_config
from sfumato.checkpoints.sd_unet_keys import from_diffusers
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.layers.spatial_transformer import SpatialTransformer, TransformerBlock
from sfumato.networks.sd_unet import PUBLISHED, SDUNet

# Published sizes --------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[int, int, float | None]] = {
    "sd1": (859_520_964, 64, 401.6),
    "sd1_inpaint": (859_535_364, 64, None),
    "sd2": (865_910_724, 64, 402.1),
    "sd2_inpaint": (865_925_124, 64, None),
    "sd2_depth": (865_913_604, 64, None),
    "sdxl": (2_567_463_684, 128, 3380.6),
    "sdxl_refiner": (2_259_526_660, 128, None),
    "x4_upscaler": (473_398_020, 128, None),
    "ldm_text": (872_300_484, 32, None),
    "ldm_text_256": (403_623_939, 64, None),
    "ldm_class": (400_920_579, 64, None),
    "ldm_class_8": (394_984_196, 32, None),
    "ldm_layout": (246_277_379, 64, None),
    "rdm_768": (1_335_480_400, 48, None),
}
"""Parameters; places a side of the latents; billions of multiplications a call with 77 tokens."""


def test_every_published_network_has_a_size() -> None:
    assert sorted(SIZES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_network_has_its_published_size(name: str) -> None:
    expected, size, gmacs = SIZES[name]
    with torch.device("meta"):
        network = SDUNet.published(name)
        assert sum(p.numel() for p in network.parameters()) == expected
        if gmacs is not None:
            tokens = torch.zeros(1, 77, network.tokens)
            vector = torch.zeros(1, network.vector) if network.vector else None
            x = torch.zeros(1, network.in_channels, size, size)
            with FlopCounterMode(display=False) as counter:
                network(x, torch.zeros(1), Condition(tokens=tokens, vector=vector))
            assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=5e-3)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean sdxl"):
        SDUNet.published("sd_xl")


# Parity with diffusers --------------------------------------------------------------------------------------

_TINY: dict[str, Any] = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "tokens": 12}
_TWO: dict[str, Any] = {"head_channels": 16, "linear_projection": True}
_XL: dict[str, Any] = {**_TINY, **_TWO, "vector": 8 + 6 * 256}
PARITY: dict[str, dict[str, Any]] = {
    "sd1": {**_TINY, "attention": (1, 2), "heads": 8},
    "sd1, two blocks": {**_TINY, "attention": (1, 2), "heads": 4, "blocks": 2},
    "inpainting": {**_TINY, "attention": (1, 2), "heads": 4, "in_channels": 9},
    "depth": {**_TINY, **_TWO, "attention": (1, 2), "in_channels": 5},
    "sd2": {**_TINY, **_TWO, "attention": (1, 2)},
    "sdxl": {**_XL, "attention": (2, 4), "depth": (0, 1, 3)},
    "refiner": {**_XL, "attention": (2,), "depth": 2, "multipliers": (1, 2, 4)},
    "x4 upscaler": {
        **_TINY,
        **{"attention": (2, 4), "cross_only": (2,), "heads": 4, "linear_projection": True},
        **{"in_channels": 7, "classes": 10},
    },
    "ldm class": {**_TINY, "attention": (2, 4), "heads": 1, "in_channels": 3, "out_channels": 3},
    "ldm layout": {**_TINY, "attention": (2, 4), "head_channels": 8, "depth": 3},
}


def twins(settings: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[SDUNet, Any]:
    """Our network and diffusers' with the same random weights, told through the names."""
    network = SDUNet(**settings).eval()
    reference = UNet2DConditionModel.from_config(to_config(network)).eval()
    reference.load_state_dict(drawn(reference.state_dict(), 1))
    network.load_state_dict(from_diffusers(reference.state_dict()))
    return network.to(dtype), reference.to(dtype)


def asked(network: SDUNet, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, times and tokens."""
    x = normal(2, network.in_channels, 8, 16).to(dtype)
    return x, torch.tensor([3.0, 950.0]), normal(2, 9, network.tokens, seed=1).to(dtype)


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_diffusers(name: str) -> None:
    network, reference = twins(PARITY[name])
    x, time, tokens = asked(network)
    told: dict[str, Any] = {}
    vector = None
    if network.classes:
        told["class_labels"] = torch.tensor([2, 7])
        vector = torch.eye(network.classes)[told["class_labels"]]
    if network.vector:
        pooled, sizes = normal(2, 8, seed=2), torch.tensor([[512.0, 768, 0, 64, 1024, 1000]] * 2)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        vector = torch.cat((pooled, sinusoid(sizes.flatten(), 256).view(2, -1)), dim=1)
    with torch.no_grad():
        theirs = reference(x, time, tokens, **told).sample
        ours = network(x, time, Condition(tokens=tokens, vector=vector))
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_parity_in_float32_where_the_sinusoids_are_rounded() -> None:
    settings = {**PARITY["sd1"], "channels": 96, "multipliers": (1, 1), "attention": (2,)}
    network, reference = twins(settings, torch.float32)
    x, time, tokens = asked(network, torch.float32)
    with torch.no_grad():
        theirs = reference(x, time, tokens).sample
        ours = network(x, time, Condition(tokens=tokens))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_parity_of_masks_and_residuals(name: str) -> None:
    settings = {**PARITY[name], "vector": 0, "blocks": 2}
    network, reference = twins(settings)
    x, time, tokens = asked(network)
    mask = torch.arange(9) < torch.tensor([[4], [7]])
    widths = [32, 32, 32, 32, 64, 64, 64, 64, 64]
    sides = [8, 8, 8, 4, 4, 4, 2, 2, 2]
    residuals = tuple(
        normal(2, width, side, 2 * side, seed=i).double()
        for i, (width, side) in enumerate(zip([*widths, 64], [*sides, 2], strict=True))
    )
    with torch.no_grad():
        plain = network(x, time, Condition(tokens=tokens))
        theirs = reference(
            x,
            time,
            tokens,
            encoder_attention_mask=mask,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
        ).sample
        ours = network(x, time, Condition(tokens=tokens, mask=mask, residuals=residuals))
        unmasked = network(x, time, Condition(tokens=tokens, residuals=residuals))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert not torch.allclose(ours, unmasked, atol=1e-3)


# What slots and settings mean -------------------------------------------------------------------------------

SD = {**PARITY["sd1"], "multipliers": (1, 2), "attention": (2,)}
TIME = torch.tensor([3.0, 950.0])


def run(network: SDUNet, x: Tensor | None = None, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(normal(2, 4, 8, 8) if x is None else x, TIME, Condition(**slots))


@pytest.fixture(scope="module")
def network() -> SDUNet:
    return randomised(SDUNet(**SD))


def test_the_output_at_initialisation_is_zero_and_transformers_are_the_identity() -> None:
    network = SDUNet(**SD)
    assert not run(network, tokens=normal(2, 5, 12)).any()
    h, context = normal(2, 32, 4, 6), Context(normal(2, 8), Condition(tokens=normal(2, 5, 12)))
    for linear in (False, True):
        with torch.no_grad():
            assert torch.equal(SpatialTransformer(32, 4, 2, 12, linear)(h, context), h)


def test_prompts_may_be_of_any_length_and_an_order_of_tokens_means_nothing(network: SDUNet) -> None:
    tokens = normal(2, 231, 12)
    out = run(network, tokens=tokens)
    torch.testing.assert_close(run(network, tokens=tokens.flip(1)), out, rtol=1e-5, atol=1e-5)
    # Said twice is said once: attention is a mean.
    twice = run(network, tokens=torch.cat((tokens, tokens), dim=1))
    torch.testing.assert_close(twice, out, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(network, tokens=tokens[:, :1]), out, atol=1e-3)


def test_no_tokens_and_a_row_of_none_add_nothing_but_a_bias(network: SDUNet) -> None:
    plain, tokens = run(network), normal(2, 5, 12)
    silent = randomised(SDUNet(**SD))
    for module in silent.modules():
        if isinstance(module, TransformerBlock):
            module.attn2.to_out[0].weight.data.zero_()
            biased = module.attn2.to_out[0].bias.data
            assert biased.any()
    # Where every token of a row is masked, attention is over nothing: zero, and the bias is left.
    masked = run(network, tokens=tokens, mask=torch.zeros(2, 5, dtype=torch.bool))
    torch.testing.assert_close(masked, run(silent, tokens=tokens), rtol=1e-5, atol=1e-5)
    for module in silent.modules():
        if isinstance(module, TransformerBlock):
            module.attn2.to_out[0].bias.data.zero_()
    torch.testing.assert_close(plain, run(silent, tokens=tokens), rtol=1e-5, atol=1e-5)


def test_without_tokens_the_second_attention_is_to_the_places_themselves() -> None:
    alone, told = TransformerBlock(32, 4), TransformerBlock(32, 4, tokens=32)
    state = drawn(alone.state_dict(), 0)
    alone.load_state_dict(state)
    told.load_state_dict(state)
    h, context = normal(2, 6, 32), Context(normal(2, 8), Condition())
    with torch.no_grad():
        inner = h + alone.attn1(alone.norm1(h), context)
        seen = Context(context.embedding, Condition(tokens=alone.norm2(inner)))
        torch.testing.assert_close(alone(h, context), told(h, seen))
    assert [alone.attn2.site.kind, told.attn2.site.kind] == ["self", "cross"]


def test_sites_tell_self_from_cross_by_name_and_kind() -> None:
    seen: list[Site] = []

    class Watch(Hooks):
        def attention(
            self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
        ) -> Tensor:
            seen.append(site)
            assert k.shape[2] == (5 if site.kind == "cross" else q.shape[2])
            return attend(q, k, v)

    settings = {**SD, "multipliers": (1, 1, 2), "attention": (2, 4), "cross_only": (4,), "depth": (0, 2, 1)}
    run(SDUNet(**settings), tokens=normal(2, 5, 12), hooks=Watch())
    two = ["input_blocks.3.1", "output_blocks.2.1", "output_blocks.3.1"]
    places = {
        **dict.fromkeys((f"{stage}.transformer_blocks.{i}" for stage in two for i in range(2)), "self"),
        "middle_block.1.transformer_blocks.0": "self",
        "input_blocks.5.1.transformer_blocks.0": "cross",
        "output_blocks.0.1.transformer_blocks.0": "cross",
        "output_blocks.1.1.transformer_blocks.0": "cross",
    }
    first = {f"{place}.attn1": kind for place, kind in places.items()}
    assert dict(seen) == {**first, **{f"{place}.attn2": "cross" for place in places}}
    assert len(seen) == 2 * len(places)


def test_pooled_text_and_sizes_must_be_told() -> None:
    network = randomised(SDUNet(**{**SD, "vector": 7}))
    with pytest.raises(InvalidInput, match="a vector of 7") as error:
        run(network)
    assert error.value.where == "vector"
    zeros = run(network, vector=torch.zeros(2, 7))
    told = run(network, vector=normal(2, 7))
    assert not torch.allclose(zeros, told, atol=1e-3)
    with pytest.raises(InvalidInput, match="vector"):
        run(network, vector=torch.zeros(2, 6))


@pytest.mark.parametrize("linear", [False, True])
def test_memory_order_and_bfloat16_change_nothing_of_note(linear: bool) -> None:
    network = randomised(SDUNet(**{**SD, "linear_projection": linear}))
    x, tokens = normal(2, 4, 8, 12), normal(2, 5, 12)
    plain = run(network, x, tokens=tokens)
    last = network.to(memory_format=torch.channels_last)
    out = run(last, x.to(memory_format=torch.channels_last), tokens=tokens)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    zeros = [(32, 8, 12), (32, 8, 12), (32, 4, 6), (64, 4, 6), (64, 4, 6)]
    half = last.to(torch.bfloat16)
    # A control network may be of another precision than the network it controls.
    out = run(half, x, tokens=tokens, residuals=tuple(torch.zeros(2, *shape) for shape in zeros))
    assert out.dtype == torch.bfloat16
    assert ((out.float() - plain).norm() / plain.norm()).item() < 0.03


def test_dropout_is_drawn_only_in_training() -> None:
    network = randomised(SDUNet(**{**SD, "dropout": 0.5}))
    assert torch.equal(run(network), run(network))
    network.train()
    assert not torch.allclose(run(network), run(network), atol=1e-3)


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("heads", {"heads": 3}),
        ("heads", {"attention": (1, 2), "channels": 36, "heads": 8}),
        ("head_channels", {"head_channels": 48}),
        ("depth", {"depth": (1,)}),
        ("depth", {"depth": (1, 0)}),
        ("depth", {"depth": 0}),
        ("depth", {"attention": (1,), "depth": (0, 1)}),
        ("cross_only", {"cross_only": (1,)}),
        ("vector", {"vector": 3, "classes": 3}),
    ],
)
def test_settings_that_fit_no_network_are_refused(where: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        SDUNet(**{**SD, **settings})
    assert error.value.where == where
