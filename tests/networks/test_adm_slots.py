"""ADM: what it starts as, and what the slots mean to it alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from network_recipes import normal, randomised
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.networks.adm import ADM
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.residual import ResidualBlock

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


def test_dropout_is_drawn_only_in_training() -> None:
    network = randomised(ADM(**{**TINY, "dropout": 0.5}))
    assert torch.equal(run(network), run(network))
    network.train()
    assert differ(run(network), run(network))
