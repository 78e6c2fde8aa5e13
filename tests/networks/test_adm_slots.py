"""ADM: what it starts as, the condition's slots, rows, gradients, configuration."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.networks.adm import ADM
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.registry import build, describe


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(network: ADM) -> ADM:
    """Weights of which none is zero, of a size that keeps features near 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        parameter.data = draw / math.sqrt(draw[0].numel()) if draw.ndim > 1 else 0.5 + 0.1 * draw
    return network.eval()


# Initialisation ---------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (2,),
    "heads": 2,
    "classes": 4,
    "tokens": 5,
}


@pytest.mark.parametrize("original", [False, True])
def test_the_output_at_initialisation_is_exactly_zero(original: bool) -> None:
    network = ADM(**TINY, original=original)
    out = network(normal(2, 3, 8, 8), torch.tensor([1.0, 2.0]), Condition(vector=torch.eye(4)[:2]))
    assert not out.any()


def test_every_block_at_initialisation_is_its_skip() -> None:
    network = ADM(**TINY, scale_shift=True, resblock_updown=True)
    seen = 0
    condition = Condition(tokens=normal(2, 3, 5))

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal seen
        h = inputs[0]
        if isinstance(module, ResidualBlock):
            h = module.skip_connection(h if module.resample is None else module.resample(h))
        assert torch.equal(output, h)
        seen += 1

    kinds = (ResidualBlock, SpatialAttention)
    blocks = [m for m in network.modules() if isinstance(m, kinds)]
    for block in blocks:
        block.register_forward_hook(check)
    network(normal(2, 3, 8, 8), torch.zeros(2), condition)
    assert seen == len(blocks) == 10 + 4


def test_ddpm_is_initialised_by_the_mean_of_the_fans() -> None:
    """Variance 2 / (in + out) of each convolution and of each of q, k and v."""
    torch.manual_seed(0)
    network = ADM(channels=64, multipliers=(1, 2), attention=(2,), original=True)
    checked = 0
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            continue
        assert not module.bias.any()
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            assert not module.weight.any()
            continue
        pixels = module.weight[0, 0].numel()
        into, out = module.weight.shape[1], module.weight.shape[0] // (3 if name.endswith("qkv") else 1)
        std = math.sqrt(2 / ((into + out) * pixels))
        # The standard deviation of a uniform sample of n has relative error sqrt(.2 / n).
        assert module.weight.std().item() == pytest.approx(std, rel=4 * (0.2 / module.weight.numel()) ** 0.5)
        checked += 1
    assert checked > 20


# Condition slots --------------------------------------------------------------------------------------------

X, TIME = normal(2, 3, 8, 8), torch.tensor([10.0, 700.0])


@pytest.fixture(scope="module")
def network() -> ADM:
    return randomised(ADM(**TINY))


def run(network: ADM, x: Tensor = X, time: Tensor = TIME, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(x, time, Condition(**slots))


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-3)


def test_no_class_is_a_zero_vector_and_classes_mix_linearly(network: ADM) -> None:
    vector = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(run(network), run(network, vector=torch.zeros(2, 4)))
    assert differ(run(network), run(network, vector=vector))
    assert network.label_emb is not None
    whole = run(network, vector=vector)
    # The mixture of rows as a class of its own.
    table = network.label_emb.weight.data.clone()
    network.label_emb.weight.data[:2] = vector @ table
    try:
        torch.testing.assert_close(run(network, vector=torch.eye(4)[:2]), whole, rtol=1e-5, atol=1e-5)
    finally:
        network.label_emb.weight.data = table


def test_residuals_of_zero_are_neutral_and_each_counts(network: ADM) -> None:
    sizes = [(32, 8), (32, 8), (32, 4), (64, 4), (64, 4)]
    zeros = tuple(torch.zeros(2, c, s, s) for c, s in sizes)
    plain = run(network)
    assert torch.equal(run(network, residuals=zeros), plain)
    for i, zero in enumerate(zeros):
        told = (*zeros[:i], normal(*zero.shape), *zeros[i + 1 :])
        assert differ(run(network, residuals=told), plain)
    for wrong in (zeros[:-1], (*zeros, zeros[-1])):
        with pytest.raises(InvalidInput, match="residuals"):
            run(network, residuals=wrong)


def test_tokens_may_be_padded(network: ADM) -> None:
    tokens = normal(2, 3, 5)
    plain = run(network, tokens=tokens)
    assert differ(plain, run(network))
    padded = torch.cat((tokens, 50 * normal(2, 4, 5, seed=1)), dim=1)
    mask = torch.arange(7).expand(2, -1) < 3
    torch.testing.assert_close(run(network, tokens=padded, mask=mask), plain, rtol=1e-5, atol=1e-5)


def test_channels_stand_beside_x() -> None:
    network = randomised(ADM(**{**TINY, "in_channels": 5}))
    beside = normal(2, 2, 8, 8, seed=1)
    assert torch.equal(run(network, channels=beside), run(network, torch.cat((X, beside), dim=1)))
    assert differ(run(network, channels=beside), run(network, channels=-beside))


@pytest.mark.parametrize(
    ("slot", "slots"),
    [
        ("vector", {"vector": torch.zeros(2, 5)}),
        ("tokens", {"tokens": torch.zeros(2, 3, 6)}),
        ("mask", {"mask": torch.ones(2, 3, dtype=torch.bool)}),
        ("image_tokens", {"image_tokens": torch.zeros(2, 3, 5)}),
        ("channels", {"channels": torch.zeros(2, 1, 8, 8)}),
        ("channels", {"channels": torch.zeros(2, 1, 4, 4)}),
        ("x", {"x": torch.zeros(2, 3, 8, 7)}),
        ("x", {"x": torch.zeros(2, 4, 8, 8)}),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(network: ADM, slot: str, slots: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInput) as error:
        run(network, **slots)
    assert slot in error.value.where.split(", ")


@pytest.mark.parametrize("slot", ["vector", "tokens"])
def test_a_network_without_a_slot_refuses_it(slot: str) -> None:
    network = ADM(channels=32, multipliers=(1,), blocks=1, attention=())
    told = {"vector": torch.zeros(2, 4)} if slot == "vector" else {"tokens": torch.zeros(2, 3, 5)}
    with pytest.raises(InvalidInput) as error:
        run(network, **told)
    assert error.value.where == slot


# Everything else --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("original", [False, True])
def test_sizes_need_not_be_square_and_rows_stand_alone(original: bool) -> None:
    network = randomised(ADM(**TINY, original=original))
    x, vector, tokens = normal(2, 3, 6, 10), torch.eye(4)[:2], normal(2, 3, 5)
    both = run(network, x, vector=vector, tokens=tokens)
    assert both.shape == x.shape
    for i in range(2):
        alone = run(network, x[i, None], TIME[i, None], vector=vector[i, None], tokens=tokens[i, None])
        torch.testing.assert_close(alone[0], both[i], rtol=1e-5, atol=1e-5)
    # Transposing the map is not transposing the answer, but a mirrored batch is a mirrored answer.
    mirrored = run(network, x.flip(0), TIME.flip(0), vector=vector.flip(0), tokens=tokens.flip(0))
    torch.testing.assert_close(mirrored.flip(0), both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("updown", [False, True])
def test_the_gradient_reaches_every_parameter(updown: bool) -> None:
    network = randomised(ADM(**TINY, scale_shift=updown, resblock_updown=updown)).train()
    condition = Condition(vector=torch.eye(4)[:2] + 0.1, tokens=normal(2, 3, 5))
    network(X, TIME, condition).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_dropout_is_drawn_only_in_training() -> None:
    network = randomised(ADM(**{**TINY, "dropout": 0.5}))
    assert torch.equal(run(network), run(network))
    network.train()
    assert differ(run(network), run(network))


def test_bfloat16_weights_take_float32_pictures(network: ADM) -> None:
    half = randomised(ADM(**TINY)).to(torch.bfloat16)
    out = run(half, vector=torch.eye(4)[:2])
    assert out.dtype == torch.bfloat16
    whole = run(network, vector=torch.eye(4)[:2])
    assert ((out.float() - whole).norm() / whole.norm()).item() < 0.03


def test_describe_and_build_are_inverse() -> None:
    settings = {**TINY, "head_channels": 16, "scale_shift": True, "multipliers": (0.5, 1), "channels": 64}
    network = ADM(**settings, dropout=0.1)
    told = json.loads(json.dumps(describe(network)))
    assert told["name"] == "adm"
    twin = build("network", told)
    assert describe(twin) == describe(network)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    assert describe(ADM()) == {"name": "adm"}
