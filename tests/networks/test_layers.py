"""Layers: embeddings by hand, norms against float64, identities at the start, attention by formula."""

from __future__ import annotations

import math
from typing import TypeVar

import pytest
import torch
from network_recipes import normal
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.embedding import Fourier, sinusoid
from sfumato.networks.layers.normalization import GroupNorm
from sfumato.networks.layers.resample import Downsample, Upsample
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.spatial_transformer import FeedForward
from sfumato.networks.layers.transformer import CrossAttention, SelfAttention, TransformerBlock

M = TypeVar("M", bound=nn.Module)


def randomised(module: M, seed: int = 0) -> M:
    """Every parameter N(0, .3²), so that nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval()


def context(embedding: Tensor | None = None, **slots: Tensor) -> Context:
    return Context(torch.zeros(1, 4) if embedding is None else embedding, Condition(**slots))


# Embeddings -------------------------------------------------------------------------------------------------


def test_sinusoids_of_adm_and_of_ddpm() -> None:
    ten = torch.tensor([10.0])
    adm = [-0.839072, 0.540302, 0.995004, 0.99995, -0.544021, 0.841471, 0.099833, 0.01]
    ddpm = [-0.544021, 0.447671, 0.021543, 0.001, -0.839072, 0.894198, 0.999768, 1.0]
    assert sinusoid(ten, 8)[0].tolist() == pytest.approx(adm, abs=1e-6)
    assert sinusoid(ten, 8, original=True)[0].tolist() == pytest.approx(ddpm, abs=1e-6)


def test_sinusoids_of_an_odd_width_end_in_zero_and_stay_float32() -> None:
    wide = sinusoid(torch.tensor([3, 7]), 9)
    assert wide.shape == (2, 9)
    assert wide.dtype == torch.float32
    assert torch.equal(wide[:, :8], sinusoid(torch.tensor([3.0, 7.0]), 8))
    assert torch.equal(wide[:, 8], torch.zeros(2))


def test_fourier_features_are_sines_of_a_fixed_random_projection() -> None:
    features = Fourier(4096)
    assert not features.W.requires_grad
    # The standard deviation of 4096 draws is within 16 (1 ± 4 / sqrt(8192)).
    assert features.W.std().item() == pytest.approx(16, rel=4 / math.sqrt(8192))
    time = torch.tensor([0.0, 0.37])
    angles = 2 * math.pi * time.double()[:, None] * features.W.double()
    expected = torch.cat((angles.sin(), angles.cos()), dim=1)
    # Angles of some hundred radians carry 2e-5 of float32 rounding.
    torch.testing.assert_close(features(time).double(), expected, rtol=0, atol=1e-4)


# Norms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 6, 7, 32, 48, 96, 100, 128])
def test_groups_are_32_or_the_most_that_divide(channels: int) -> None:
    groups = GroupNorm(channels).num_groups
    assert groups == max(g for g in range(1, 33) if 32 % g == 0 and channels % g == 0)
    assert GroupNorm(channels)(normal(2, channels, 3, 3)).isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_group_norm_of_bfloat16_is_that_of_float64_rounded_once(offset: float) -> None:
    norm = randomised(GroupNorm(64)).to(torch.bfloat16)
    x = (normal(2, 64, 8, 8) + offset).to(torch.bfloat16)
    exact = nn.functional.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), 1e-5)
    out = norm(x)
    assert out.dtype == torch.bfloat16
    half_unit = exact.abs() * 2**-8
    assert ((out.double() - exact).abs() <= half_unit * 1.01 + 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_norm_hands_float32_to_every_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's kernel accumulates in float32 by itself; others need not."""
    given = []
    kernel = nn.functional.group_norm

    def watch(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        given.extend((x.dtype, weight.dtype, bias.dtype))
        return kernel(x, groups, weight, bias, eps)

    monkeypatch.setattr(nn.functional, "group_norm", watch)
    assert GroupNorm(32).to(dtype)(normal(1, 32, 2, 2).to(dtype)).dtype == dtype
    assert given == [torch.float32] * 3


# Resampling -------------------------------------------------------------------------------------------------


def test_downsampling_pads_evenly_or_to_the_right_and_below() -> None:
    x = normal(1, 1, 6, 8)
    for lopsided in (False, True):
        down = Downsample(1, lopsided=lopsided)
        nn.init.zeros_(down.op.weight)
        nn.init.zeros_(down.op.bias)
        down.op.weight.data[0, 0, 0, 0] = 1
        out = down(x)
        assert out.shape == (1, 1, 3, 4)
        if lopsided:
            assert torch.equal(out, x[..., ::2, ::2])
        else:
            assert torch.equal(out[..., 1:, 1:], x[..., 1:-1:2, 1:-1:2])
            assert not out[..., 0, :].any()


def test_unlearned_resampling_is_a_mean_and_a_repetition() -> None:
    x = normal(2, 3, 4, 6)
    blocks = x.unflatten(3, (3, 2)).unflatten(2, (2, 2))
    torch.testing.assert_close(Downsample(3, learned=False)(x), blocks.mean((3, 5)))
    assert torch.equal(Upsample(3, learned=False)(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert not list(Downsample(3, learned=False).parameters()) + list(Upsample(3, False).parameters())
    up = Upsample(3)
    assert torch.equal(up(x), up.conv(Upsample(3, learned=False)(x)))


# Blocks that start as the identity --------------------------------------------------------------------------


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("out", [32, 64])
def test_a_residual_block_starts_as_its_skip(scale_shift: bool, resample: str | None, out: int) -> None:
    block = ResidualBlock(32, out, 16, scale_shift=scale_shift, resample=resample)  # type: ignore[arg-type]
    h = normal(2, 32, 4, 6)
    there = h if block.resample is None else block.resample(h)
    expected = there if out == 32 else block.skip_connection(there)
    assert torch.equal(block(h, context(normal(2, 16))), expected)
    randomised(block)
    assert not torch.allclose(block(h, context(normal(2, 16))), block.skip_connection(there), atol=1e-2)


def test_the_embedding_is_added_or_scales_and_shifts() -> None:
    h, embedding = normal(2, 32, 4, 4), normal(2, 16, seed=1)
    for scale_shift in (False, True):
        block = randomised(ResidualBlock(32, 32, 16, scale_shift=scale_shift))
        inner = block.in_layers(h)
        told = block.emb_layers(embedding)[:, :, None, None]
        norm, act, _, conv = block.out_layers
        shifted = (1 + told[:, :32], told[:, 32:]) if scale_shift else None
        inner = norm(inner + told) if shifted is None else norm(inner) * shifted[0] + shifted[1]
        torch.testing.assert_close(block(h, context(embedding)), h + conv(act(inner)))


@pytest.mark.parametrize("tokens", [0, 5])
def test_attentions_and_transformer_blocks_start_as_the_identity(tokens: int) -> None:
    told = {"tokens": normal(2, 3, 5)} if tokens else {}
    spatial = SpatialAttention(32, 4, tokens=tokens)
    h = normal(2, 32, 4, 4)
    assert torch.equal(spatial(h, context(**told)), h)
    assert not torch.allclose(randomised(spatial)(h, context(**told)), h, atol=1e-2)
    block = TransformerBlock(16, 2, tokens)
    row, embedding = normal(2, 6, 16), normal(2, 16, seed=1)
    assert torch.equal(block(row, context(embedding, **told)), row)
    assert not torch.allclose(randomised(block)(row, context(embedding, **told)), row, atol=1e-2)


# Attention --------------------------------------------------------------------------------------------------


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v in float64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v


def test_spatial_attention_is_the_formula_in_both_orders() -> None:
    heads, channels = 4, 32
    legacy, new = SpatialAttention(channels, heads), SpatialAttention(channels, heads, new_order=True)
    randomised(legacy)
    new.load_state_dict(legacy.state_dict())
    h = normal(2, channels, 3, 5)
    assert not torch.allclose(legacy(h, context()), new(h, context()), atol=1e-2)
    # The same rows of the convolution, moved from [heads, (q, k, v), D] to [(q, k, v), heads, D].
    for name in ("weight", "bias"):
        rows = getattr(legacy.qkv, name).data
        moved = rows.unflatten(0, (heads, 3, channels // heads)).transpose(0, 1).flatten(0, 2)
        getattr(new.qkv, name).data = moved.contiguous()
    torch.testing.assert_close(legacy(h, context()), new(h, context()), rtol=1e-6, atol=1e-6)

    q, k, v = new.qkv(new.norm(h).flatten(2)).mT.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    joined = by_hand(q, k, v).transpose(1, 2).flatten(2).mT
    weight, bias = new.proj_out.weight[..., 0].double(), new.proj_out.bias.double()
    expected = h.double() + (weight @ joined + bias[:, None]).view(h.shape)
    torch.testing.assert_close(new(h, context()).double(), expected, rtol=1e-5, atol=1e-5)


def test_self_attention_over_tokens_is_the_formula() -> None:
    attention = randomised(SelfAttention(16, 4))
    h = normal(2, 7, 16)
    q, k, v = attention.qkv(h).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    expected = nn.functional.linear(
        by_hand(q, k, v).transpose(1, 2).flatten(2),
        attention.proj.weight.double(),
        attention.proj.bias.double(),
    )
    torch.testing.assert_close(attention(h, context()).double(), expected, rtol=1e-5, atol=1e-5)


def _attend(kind: str, **slots: Tensor) -> Tensor:
    if kind == "spatial":
        return randomised(SpatialAttention(32, 4, tokens=5))(normal(2, 32, 3, 3), context(**slots))
    return randomised(CrossAttention(16, 4, 5))(normal(2, 6, 16), context(**slots))


@pytest.mark.parametrize("kind", ["spatial", "cross"])
def test_masked_tokens_have_no_influence(kind: str) -> None:
    tokens = normal(2, 4, 5, seed=3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    told = _attend(kind, tokens=tokens, mask=mask)
    changed = torch.where(mask[..., None], tokens, 1e3 * normal(2, 4, 5, seed=4))
    assert torch.equal(told, _attend(kind, tokens=changed, mask=mask))
    assert not torch.allclose(told, _attend(kind, tokens=changed), atol=1e-2)
    alone = _attend(kind, tokens=tokens[:, :2])
    torch.testing.assert_close(told[0], alone[0], rtol=1e-5, atol=1e-5)
    every = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(
        _attend(kind, tokens=tokens, mask=every), _attend(kind, tokens=tokens), rtol=1e-5, atol=1e-5
    )


def test_no_tokens_or_none_that_count_say_nothing() -> None:
    tokens, none = normal(2, 4, 5), torch.zeros(2, 4, dtype=torch.bool)
    plain = _attend("spatial")
    torch.testing.assert_close(_attend("spatial", tokens=tokens, mask=none), plain, rtol=1e-5, atol=1e-5)
    assert not _attend("cross").any()
    assert _attend("cross", tokens=tokens, mask=none).isfinite().all()


@pytest.mark.parametrize("layer", [lambda: SpatialAttention(32, 5), lambda: SelfAttention(16, 3)])
def test_heads_that_do_not_divide_are_refused(layer: object) -> None:
    with pytest.raises(InvalidInput, match="heads"):
        layer()  # type: ignore[operator]


def test_a_feed_forward_taken_in_pieces_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, h = randomised(FeedForward(4)), torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(2))
    whole, seen = layer(h), list[tuple[int, ...]]()
    layer.net.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    monkeypatch.setattr("sfumato.networks.layers.spatial_transformer._PIECE", 8 * 4 * 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(h), whole, rtol=1e-5, atol=1e-6)
    assert seen == [(8, 4)] * 3 + [(6, 4)]
    # Where a gradient is asked for nothing is cut.
    layer(h).sum().backward()
    assert seen[4:] == [(2, 15, 4)]
