"""MLP: slots, rows, and that it really learns: eight Gaussians, to the loss of the exact denoiser."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.networks.mlp import MLP
from sfumato.registry import build, describe

X, TIME = (
    torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.0, 1.0, 300.0, 999.0]),
)


def randomised(network: MLP) -> MLP:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return network


@pytest.fixture(scope="module")
def network() -> MLP:
    return randomised(MLP(dim=3, width=32, depth=3, classes=4))


def run(network: MLP, x: Tensor = X, time: Tensor = TIME, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(x, time, Condition(**slots))


def test_output_is_zero_and_blocks_are_identities_at_initialisation() -> None:
    network = MLP(dim=3, width=32, depth=3, classes=4)
    seen = []

    def check(module: object, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert torch.equal(output, inputs[0])
        seen.append(module)

    for block in network.blocks:
        block.register_forward_hook(check)
    assert not run(network, vector=torch.eye(4)).any()
    assert len(seen) == 3


def test_time_and_vector_are_heeded_and_zeros_say_nothing(network: MLP) -> None:
    plain = run(network)
    assert torch.equal(run(network, vector=torch.zeros(4, 4)), plain)
    assert not torch.allclose(run(network, vector=torch.eye(4)), plain, atol=1e-3)
    assert not torch.allclose(run(network, time=TIME.flip(0)), plain, atol=1e-3)
    vector = torch.tensor([[0.2, 0.0, 0.5, 0.3]])
    assert network.label_emb is not None
    table = network.label_emb.weight.data.clone()
    mixed = run(network, X[:1], TIME[:1], vector=vector)
    network.label_emb.weight.data[1] = vector[0] @ table
    try:
        as_one = run(network, X[:1], TIME[:1], vector=torch.eye(4)[1, None])
    finally:
        network.label_emb.weight.data = table
    torch.testing.assert_close(as_one, mixed, rtol=1e-5, atol=1e-6)


def test_a_block_scales_shifts_and_adds(network: MLP) -> None:
    block = network.blocks[0]
    h, embedding = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1)).unbind()
    told = block.told(embedding)
    inner = block.into(nn.functional.silu(block.norm(h) * (1 + told[:, :32]) + told[:, 32:]))
    expected = h + block.back(nn.functional.silu(inner))
    torch.testing.assert_close(block(h, Context(embedding, Condition())), expected)


def test_rows_stand_alone(network: MLP) -> None:
    both = run(network, vector=torch.eye(4))
    for i in range(4):
        alone = run(network, X[i, None], TIME[i, None], vector=torch.eye(4)[i, None])
        torch.testing.assert_close(alone[0], both[i], rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_every_parameter(network: MLP) -> None:
    network.zero_grad()
    network(X, TIME, Condition(vector=torch.eye(4))).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    network.zero_grad()
    assert not dead


@pytest.mark.parametrize(
    ("slot", "slots"),
    [
        ("x", {"x": torch.zeros(4, 2)}),
        ("x", {"x": torch.zeros(4, 3, 2)}),
        ("vector", {"vector": torch.zeros(4, 5)}),
        ("tokens", {"tokens": torch.zeros(4, 3, 5)}),
        ("mask", {"mask": torch.ones(4, 3, dtype=torch.bool)}),
        ("channels", {"channels": torch.zeros(4, 1, 2, 2)}),
        ("image_tokens", {"image_tokens": torch.zeros(4, 3, 5)}),
        ("residuals", {"residuals": (torch.zeros(4, 32),)}),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(network: MLP, slot: str, slots: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        run(network, **slots)
    assert error.value.where == slot


def test_a_network_without_classes_refuses_a_vector() -> None:
    with pytest.raises(InvalidInput, match="vector"):
        run(MLP(dim=3), vector=torch.zeros(4, 2))


def test_describe_and_build_are_inverse(network: MLP) -> None:
    told = json.loads(json.dumps(describe(network)))
    assert told == {"name": "mlp", "dim": 3, "width": 32, "classes": 4}
    twin = build("network", told)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(run(twin, vector=torch.eye(4)), run(network, vector=torch.eye(4)))


def test_it_learns_eight_gaussians_to_the_exact_loss() -> None:
    """E‖v̂ - v‖² = E‖v* - v‖² + E‖v̂ - v*‖² with v* the exact mixture's: the first term is the least loss."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = torch.stack((angles.cos(), angles.sin()), dim=1) * 1.3
    each = torch.full((8,), 1 / 8, dtype=torch.float64)
    mixture = GaussianMixture(means, torch.full((8,), 0.1, dtype=torch.float64), each)
    generator = torch.Generator().manual_seed(0)

    def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
        which = torch.randint(8, (count,), generator=generator)
        x0 = means[which].float() + 0.1 * torch.randn(count, 2, generator=generator)
        eps = torch.randn(count, 2, generator=generator)
        t = 0.02 + 0.96 * torch.rand(count, 1, generator=generator)
        return (1 - t) * x0 + t * eps, t, eps - x0

    torch.manual_seed(0)
    network = MLP(width=96, depth=3)
    steps = 1000
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, t, velocity = batch(512)
        loss = (network(x, 1000 * t[:, 0], Condition()) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    x, t, velocity = batch(50_000)
    with torch.no_grad():
        learnt = network(x, 1000 * t[:, 0], Condition())
    exact = (x - mixture(x, Level(1 - t, t)).x0) / t
    pairs = ((exact, velocity), (learnt, velocity), (learnt, exact), (torch.zeros_like(exact), exact))
    best, reached, gap, ignorance = ((a - b).square().mean().item() for a, b in pairs)
    # The product of the two errors has mean 0 and the variance of its 100,000 terms.
    assert reached == pytest.approx(best + gap, abs=10 * math.sqrt(best * gap / 100_000))
    assert gap < 0.01 * best
    assert ignorance > 0.4 * best
