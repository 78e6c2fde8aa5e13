"""Convolutions by Winograd in training: the formula's gradients, the same run, the network left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.acceleration import quick_convolutions as module
from sfumato.acceleration import winograd as tiles
from sfumato.acceleration.quick_convolutions import QuickConv2d, _convolution, quick_convolutions
from sfumato.acceleration.winograd import able, weight_gradient

pytestmark = pytest.mark.skipif(not able(), reason="no compiler")


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (9, 2), (1, 1)])
def test_gradients_are_those_of_the_formula(
    height: int, width: int, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By finite differences, and gradients of gradients too."""
    monkeypatch.setattr(module, "_tiled", lambda x, weight: tiled)
    x = normal(2, 3, height, width).requires_grad_()
    weight, bias = normal(4, 3, 3, 3, seed=2).requires_grad_(), normal(4, seed=3).requires_grad_()
    torch.testing.assert_close(_convolution(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    assert torch.autograd.gradcheck(_convolution, (x, weight, bias))
    assert torch.autograd.gradgradcheck(_convolution, (x, weight, bias))
    torch.testing.assert_close(
        torch.autograd.grad(_convolution(x, weight, None).square().sum(), (x, weight)),
        torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), (x, weight)),
    )
    fixed = weight.detach()
    (alone,) = torch.autograd.grad(_convolution(x, fixed, None).sum(), x)
    assert alone.shape == x.shape


@pytest.mark.parametrize(
    ("shape", "out", "way"),
    [
        ((16, 64, 32, 32), 64, "winograd"),
        ((16, 512, 4, 4), 256, "shifts"),
        ((64, 256, 2, 2), 256, "shifts"),
        ((64, 256, 4, 4), 256, "winograd"),
        ((1, 512, 8, 8), 512, "shifts"),
        ((16, 128, 4, 4), 128, "plain"),
        ((1, 256, 4, 4), 256, "plain"),
        ((4, 256, 8, 8), 256, "plain"),
    ],
)
def test_each_shape_goes_the_way_that_was_measured_to_be_quicker(
    shape: tuple[int, ...], out: int, way: str
) -> None:
    x, weight = torch.empty(shape, device="meta"), torch.empty(out, shape[1], 3, 3, device="meta")
    tiled, small = module._tiled(x, weight), module._small(x, weight)
    assert way == ("winograd" if tiled else "shifts" if small else "plain")


def test_a_weight_gradient_of_bands_is_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gradient = normal(2, 3, 21, 10), normal(2, 5, 21, 10, seed=2)
    whole = weight_gradient(x, gradient)
    monkeypatch.setattr(tiles, "_BAND", 1)
    monkeypatch.setattr(tiles, "_LEAST", 4)
    torch.testing.assert_close(weight_gradient(x, gradient), whole, rtol=1e-12, atol=1e-12)


class Net(nn.Module):
    """Layers that go by Winograd, and layers that must not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 64, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 1))
        self.down = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.small = nn.Conv2d(64, 64, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.small(self.down(self.inner(self.enter(x))))
        return made


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    net(x).square().mean().backward()
    return [each.grad.clone() for each in net.parameters() if each.grad is not None]


def test_a_network_learns_the_same_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    net, x = Net(), normal(16, 3, 16, 16, dtype=torch.float32)
    plain, layers, seen = gradients(net, x), dict(net.named_modules()), list[Any]()
    monkeypatch.setattr(module, "_convolution", lambda *a: (seen.append(a), _convolution(*a))[1])
    with quick_convolutions(net):
        quick = [name for name, each in net.named_modules() if isinstance(each, QuickConv2d)]
        assert quick == ["inner.0", "small"]
        assert net.state_dict().keys() == copy.deepcopy(net).state_dict().keys()
        made = gradients(net, x)
        # The maps of the last are small.
        assert len(seen) == 1
        with torch.autocast("cpu", torch.bfloat16):
            net(x)
        assert len(seen) == 1
    assert len(made) == len(plain)
    for mine, theirs in zip(made, plain, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    assert dict(net.named_modules()) == layers
    assert module._WORK == 16 * 16 * 64


def test_it_goes_with_compile_as_one_graph() -> None:
    """Layers of all ways, and the same code at the next step, when they were put back in between."""
    torch.manual_seed(1)
    deep = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.SiLU(), nn.Conv2d(256, 64, 3, padding=1))
    net = nn.Sequential(Net(), nn.AvgPool2d(2), nn.Conv2d(64, 256, 1), deep)
    x = normal(16, 3, 16, 16, dtype=torch.float32)
    plain, made = gradients(net, x), list[Any]()

    def counted(graph: Any, given: Any) -> Any:
        made.append([str(node.target) for node in graph.graph.nodes if "sfumato" in str(node.target)])
        return inductor(graph, given)

    inductor: Any = torch._inductor.compile  # type: ignore[attr-defined]
    forward = torch.compile(net, fullgraph=True, backend=counted)
    for _ in range(2):
        with quick_convolutions(net):
            found = gradients(Called(net, forward), x)
        for mine, theirs in zip(found, plain, strict=True):
            assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    assert made == [["sfumato.convolution.default"] * 2]


class Called(nn.Module):
    """A network by its compiled forward."""

    def __init__(self, network: nn.Module, forward: Any) -> None:
        super().__init__()
        self.network, self.made = network, (forward,)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.made[0](x)
        return made


def test_without_kernels_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "able", lambda: False)
    net = Net()
    with quick_convolutions(net):
        assert not any(isinstance(each, QuickConv2d) for each in net.modules())


def test_an_error_leaves_the_network_as_it_was() -> None:
    net = Net()
    with pytest.raises(RuntimeError), quick_convolutions(net):
        net(torch.zeros(1, 5, 16, 16))
    assert type(net.small) is nn.Conv2d
