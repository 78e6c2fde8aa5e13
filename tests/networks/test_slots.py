"""Slots, rows, gradients and configuration of every network that takes pictures and tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from network_recipes import normal, randomised
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.registry import build, describe

ADM = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2}
DIT = {"out_channels": 3, "width": 32, "depth": 2, "heads": 4}
TOLD = {"in_channels": 3, "classes": 4, "tokens": 5}
NETWORKS: dict[str, dict[str, Any]] = {
    "adm": {"name": "adm", **ADM, **TOLD},
    "ddpm": {"name": "adm", **ADM, **TOLD, "original": True},
    "adm, residual resampling": {
        **{"name": "adm", **ADM, **TOLD, "scale_shift": True},
        **{"resblock_updown": True, "head_channels": 16, "multipliers": (0.5, 1), "channels": 64},
    },
    "sd_unet": {"name": "sd_unet", **ADM, **TOLD, "out_channels": 3, "depth": [0, 2]},
    "sd_unet, cross only": {
        **{"name": "sd_unet", **ADM, **TOLD, "out_channels": 3, "attention": (1, 2), "cross_only": (2,)},
        "linear_projection": True,
    },
    "dit": {"name": "dit", **DIT, **TOLD},
    "dit, patch 4": {"name": "dit", **DIT, **TOLD, "patch": 4},
}
X, TIME = normal(2, 3, 8, 8), torch.tensor([10.0, 700.0])


def make(name: str, **more: Any) -> nn.Module:
    return randomised(build("network", {**NETWORKS[name], **more}))


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> nn.Module:
    return make(name)


def run(network: nn.Module, x: Tensor = X, time: Tensor = TIME, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(x, time, Condition(**slots))


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-3)


def test_no_class_is_a_zero_vector_and_classes_differ(network: nn.Module) -> None:
    plain = run(network)
    assert torch.equal(plain, run(network, vector=torch.zeros(2, 4)))
    answers = [plain, *(run(network, vector=row.expand(2, -1)) for row in torch.eye(4))]
    assert all(differ(a, b) for i, a in enumerate(answers) for b in answers[:i])


def test_tokens_may_be_padded(network: nn.Module) -> None:
    tokens = normal(2, 3, 5)
    plain = run(network, tokens=tokens)
    assert differ(plain, run(network))
    padded = torch.cat((tokens, 50 * normal(2, 4, 5, seed=1)), dim=1)
    mask = torch.arange(7).expand(2, -1) < 3
    torch.testing.assert_close(run(network, tokens=padded, mask=mask), plain, rtol=1e-5, atol=1e-5)


def test_channels_stand_beside_x(name: str) -> None:
    network = make(name, in_channels=5)
    beside = normal(2, 2, 8, 8, seed=1)
    assert torch.equal(run(network, channels=beside), run(network, torch.cat((X, beside), dim=1)))
    assert differ(run(network, channels=beside), run(network, channels=-beside))
    # A draft stands between them.
    one, other = beside.split(1, dim=1)
    assert torch.equal(run(network, channels=other, draft=one), run(network, channels=beside))


@pytest.mark.parametrize(
    ("slot", "slots"),
    [
        ("vector", {"vector": torch.zeros(2, 5)}),
        ("tokens", {"tokens": torch.zeros(2, 3, 6)}),
        ("mask", {"mask": torch.ones(2, 3, dtype=torch.bool)}),
        ("image_tokens", {"image_tokens": torch.zeros(2, 3, 5)}),
        ("residuals", {"residuals": (torch.zeros(2, 3, 8, 8),)}),
        ("channels", {"channels": torch.zeros(2, 1, 8, 8)}),
        ("channels", {"channels": torch.zeros(2, 1, 4, 4)}),
        ("draft", {"draft": torch.zeros(2, 1, 8, 8)}),
        ("draft", {"draft": torch.zeros(2, 1, 4, 4)}),
        ("x", {"x": torch.zeros(2, 3, 8, 7)}),
        ("x", {"x": torch.zeros(2, 4, 8, 8)}),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(
    network: nn.Module, slot: str, slots: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as error:
        run(network, **slots)
    assert slot in error.value.where.split(", ")


@pytest.mark.parametrize("slot", ["vector", "tokens"])
def test_a_network_without_a_slot_refuses_it(name: str, slot: str) -> None:
    network = make(name, classes=0, tokens=0)
    told = {"vector": torch.zeros(2, 4)} if slot == "vector" else {"tokens": torch.zeros(2, 3, 5)}
    with pytest.raises(InvalidInput) as error:
        run(network, **told)
    assert error.value.where == slot


def test_sizes_need_not_be_square_and_rows_stand_alone(network: nn.Module) -> None:
    x, vector, tokens = normal(2, 3, 8, 12), torch.eye(4)[:2], normal(2, 3, 5)
    both = run(network, x, vector=vector, tokens=tokens)
    assert both.shape == x.shape
    for i in range(2):
        alone = run(network, x[i, None], TIME[i, None], vector=vector[i, None], tokens=tokens[i, None])
        torch.testing.assert_close(alone[0], both[i], rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = make(name).train()
    condition = Condition(vector=torch.eye(4)[:2] + 0.1, tokens=normal(2, 3, 5))
    network(X, TIME, condition).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_bfloat16_weights_take_float32_pictures(name: str, network: nn.Module) -> None:
    out = run(make(name).to(torch.bfloat16), vector=torch.eye(4)[:2])
    assert out.dtype == torch.bfloat16
    whole = run(network, vector=torch.eye(4)[:2])
    assert ((out.float() - whole).norm() / whole.norm()).item() < 0.03


def test_describe_and_build_are_inverse(network: nn.Module) -> None:
    told = json.loads(json.dumps(describe(network)))
    twin = build("network", told)
    assert type(twin) is type(network)
    assert describe(twin) == told
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    assert describe(type(network)()) == {"name": told["name"]}
