"""Prepacked layers say what the layers say, and only while their weights are what they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.acceleration import prepack
from sfumato.acceleration.packed import PACKED, fastest, packable, packed, ways
from sfumato.acceleration.prepack import Prepack
from sfumato.core.condition import Condition
from sfumato.core.meta import on_meta
from sfumato.networks.sd_unet import SDUNet

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "three by three": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 7)),
    "without a bias": (lambda: nn.Conv2d(8, 12, 3, padding=1, bias=False), (2, 8, 9, 7)),
    "smaller": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 10, 8)),
    "one by one": (lambda: nn.Conv2d(8, 12, 1), (2, 8, 5, 6)),
    "spread": (lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2), (1, 4, 8, 8)),
    "linear": (lambda: nn.Linear(8, 12), (2, 5, 8)),
    "linear without a bias": (lambda: nn.Linear(8, 12, bias=False), (3, 8)),
}
CASES = [
    (name, way)
    for name, (layer, shape) in LAYERS.items()
    for way in ways(layer(), shape)  # type: ignore[arg-type]
    if way != "int8"
]


def made(name: str, way: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, it packed, and an input."""
    torch.manual_seed(1)
    layer, shape = LAYERS[name][0](), LAYERS[name][1]
    return layer, packed(layer, way, shape), torch.randn(shape)  # type: ignore[arg-type]


def other(x: Tensor) -> Tensor:
    """An input of another batch and height than it was packed for."""
    wide = torch.cat((x, x.flip(0)))
    return torch.cat((wide, wide[:, :, :3]), dim=2) if x.dim() == 4 else wide


def network() -> SDUNet:
    torch.manual_seed(3)
    settings = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "tokens": 4}
    net = SDUNet(in_channels=2, out_channels=2, **settings)  # type: ignore[arg-type]
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def run(net: nn.Module) -> Tensor:
    """An estimate; of a copy on the meta device, too."""
    on = next(net.parameters()).device
    x = torch.linspace(-1, 1, 2 * 2 * 64).view(2, 2, 8, 8).to(on)
    with torch.no_grad():
        return net(x, torch.tensor([3.0, 700.0]).to(on), Condition(tokens=torch.ones(2, 3, 4)).to(on))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_every_way_is_the_layer(name: str, way: str) -> None:
    layer, quick, x = made(name, way)
    assert isinstance(quick, PACKED)
    for each in (x, other(x), x.to(memory_format=torch.channels_last) if x.dim() == 4 else x):
        with torch.no_grad():
            torch.testing.assert_close(quick(each), layer(each), rtol=1e-5, atol=1e-5)
            assert quick.packed.serves(quick, each)
    assert quick.state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize(("name", "way"), CASES)
def test_weights_that_change_are_not_gone_past(name: str, way: str) -> None:
    """In place, as an adapter is merged; or others altogether."""
    layer, quick, x = made(name, way)
    with torch.no_grad():
        before = quick(x)
        layer.weight.mul_(2)
        after = quick(x)
        assert not torch.allclose(after, before, atol=1e-2)
        assert torch.equal(after, layer(x))
        quick.weight = nn.Parameter(layer.weight.clone())  # type: ignore[operator]
        assert not quick.packed.serves(quick, x)  # type: ignore[union-attr]
        assert torch.equal(quick(x), after)


def test_what_it_does_not_serve_is_computed_as_before() -> None:
    layer, quick, x = made("three by three", "winograd")
    quick(x).sum().backward()
    packed_gradient = layer.weight.grad.clone()  # type: ignore[union-attr,operator]
    layer.weight.grad = None
    layer(x).sum().backward()
    assert torch.equal(packed_gradient, layer.weight.grad)  # type: ignore[arg-type]
    half = [copy.deepcopy(each).bfloat16()(x.bfloat16()) for each in (quick, layer)]
    assert torch.equal(*half)
    assert on_meta(quick)(x.to("meta")).shape == layer(x).shape
    assert not packable(nn.Conv2d(4, 4, 3, groups=2))
    assert not packable(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    assert not packable(nn.Conv2d(4, 4, 3).bfloat16())
    hooked = nn.Conv2d(4, 4, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert not packable(hooked)


def test_a_network_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer by each way it can go; its weights are shared and its own layers left."""
    net = network()
    plain = run(net)
    for wish in ("matrix", "onednn", "winograd"):
        monkeypatch.setattr(
            prepack, "fastest", lambda layer, shape, able, wish=wish: wish if wish in able else ""
        )
        quick = Prepack(kept=str(tmp_path / wish)).prepare(net, run)
        count = sum(isinstance(each, PACKED) for each in quick.modules())
        # Convolutions that are left as they are keep channels last.
        assert count == sum(
            isinstance(each, nn.Conv2d) or wish in ways(each, (2, each.weight.shape[1], 8, 8))  # type: ignore[arg-type,index]
            for each in net.modules()
            if packable(each)
        )
        torch.testing.assert_close(run(quick), plain, rtol=1e-4, atol=1e-5)
        shared = zip(quick.parameters(), net.parameters(), strict=True)
        assert all(mine is own for mine, own in shared)
    assert not any(isinstance(each, PACKED) for each in net.modules())
    assert torch.equal(run(net), plain)


def test_channels_stand_last_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a convolution that nothing is gained of, too: all that follows would bring them there."""
    net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 3, stride=2))
    able = {"Conv2d(24, 24, kernel_size=(1, 1), stride=(1, 1))": "onednn"}
    monkeypatch.setattr(prepack, "fastest", lambda layer, shape, names: able.get(str(layer), ""))
    x = torch.randn(2, 3, 9, 8)
    quick = Prepack(kept=None).prepare(net, lambda made: made(x.to(next(made.parameters()).device)))
    with torch.no_grad():
        for layer in quick.children():
            x = layer(x)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert not x.is_contiguous()
    # Where nothing at all is gained, nothing is changed.
    able.clear()
    assert Prepack(kept=None).prepare(net, lambda made: made(torch.empty(2, 3, 9, 8, device="meta"))) is net


def test_what_was_fastest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, net, asked = tmp_path / "deep" / "ways.json", network(), list[str]()

    def fastest(layer: nn.Module, shape: tuple[int, ...], able: list[str]) -> str:
        asked.append(f"{layer} {shape}")
        return able[-1]

    monkeypatch.setattr(prepack, "fastest", fastest)
    Prepack(kept=str(file)).prepare(net, run)
    # Layers of one form are measured once.
    assert len(set(asked)) == len(asked) < sum(packable(each) for each in net.modules())
    first = len(asked)
    Prepack(kept=str(file)).prepare(net, run)
    assert len(asked) == first
    (machine,) = json.loads(file.read_text())
    assert f"{torch.get_num_threads()} threads" in machine
    Prepack(kept=str(file), winograd=False).prepare(net, run)
    assert len(asked) > first
    for broken in ("{", "[]", json.dumps({machine: {"a": 1}, "b": []}), json.dumps({machine: {}})):
        file.write_text(broken)
        count = len(asked)
        Prepack(kept=str(file)).prepare(net, run)
        assert len(asked) == count + first
        assert json.loads(file.read_text())[machine]
    # A folder that cannot be written is no reason to fail.
    Prepack(kept="/proc/none/ways.json").prepare(net, run)


@pytest.mark.parametrize("late", [0, 1, 5])
def test_a_machine_that_does_something_else_for_a_while_misleads_nobody(
    monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """One try of the fastest way is held up; the clock is the test's own."""
    now, calls = [0.0], []

    def takes(seconds: float, name: str) -> Callable[[Tensor], Tensor]:
        def way(x: Tensor) -> Tensor:
            held = 0.1 if name == "matrix" and calls.count(name) == late else 0.0
            calls.append(name)
            now[0] += seconds + held
            return x

        return way

    ways = {"matrix": lambda: takes(0.001, "matrix"), "onednn": lambda: takes(0.0015, "onednn")}
    monkeypatch.setattr(sfumato.acceleration.packed, "ways", lambda layer, shape: ways)
    monkeypatch.setattr(sfumato.acceleration.packed.time, "perf_counter", lambda: now[0])
    layer: Any = takes(0.002, "")
    assert fastest(layer, (1, 3), ["matrix", "onednn"]) == "matrix"
    assert fastest(layer, (1, 3), ["onednn"]) == "onednn"
    # Of three ways of seconds each, one is tried twice and two, hopeless, once.
    calls.clear()
    ways = {"matrix": lambda: takes(2.0, "matrix"), "onednn": lambda: takes(3.5, "onednn")}
    assert fastest(takes(3.4, ""), (1, 3), ["matrix", "onednn"]) == "matrix"
    assert sorted(calls) == ["", "matrix", "matrix", "onednn"]


def test_where_nothing_is_gained_the_network_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepack, "fastest", lambda layer, shape, able: "")
    net = network()
    assert Prepack(kept=str(tmp_path / "ways")).prepare(net, run) is net
    half = network().bfloat16()
    assert Prepack(kept=str(tmp_path / "ways")).prepare(half, lambda net: None) is half


def test_pictures_are_the_same_but_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model, each layer as far from the plain one as can be; in a call, for good, planned."""
    monkeypatch.setattr(prepack, "fastest", lambda layer, shape, able: able[-1] if able else "")
    model, asked = sfumato.load("emoji"), {"prompt": "a red apple, noto", "seed": 4, "steps": 6}
    own = {"name": "prepack", "kept": str(tmp_path / "ways.json")}
    plain = sfumato.generate(model, **asked).tensor
    quick = sfumato.generate(model, **asked, fast=own)
    torch.testing.assert_close(quick.tensor, plain, rtol=0, atol=1e-3)
    assert quick.recipes[0]["fast"] == [{"name": "prepack", "kept": own["kept"]}]
    assert sfumato.plan(model, **asked, fast=own).weights > sfumato.plan(model, **asked).weights
    better = sfumato.optimize(model, [own, {"name": "block_cache", "every": 2}], prompt="a red apple")
    assert [each["name"] for each in better.card["fast"]] == ["block_cache"]
    cached = sfumato.generate(model, **asked, fast={"name": "block_cache", "every": 2}).tensor
    torch.testing.assert_close(sfumato.generate(better, **asked).tensor, cached, rtol=0, atol=1e-3)
    assert "fast" not in model.card
