"""Products of eight bits: exact where every number is whole, near where not, and never asked for unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.acceleration import int8, prepack
from sfumato.acceleration.int8 import quantizable, steps
from sfumato.acceleration.packed import PACKED, packed, ways
from sfumato.acceleration.prepack import Prepack
from sfumato.core.condition import Condition
from sfumato.model import Model

LAYERS: dict[str, tuple[Callable[[], nn.Conv2d | nn.Linear], tuple[int, ...]]] = {
    "three by three": (lambda: nn.Conv2d(24, 32, 3, padding=1), (2, 24, 9, 7)),
    "without a bias": (lambda: nn.Conv2d(24, 32, 3, padding=1, bias=False), (1, 24, 9, 7)),
    "smaller": (lambda: nn.Conv2d(24, 32, 3, stride=2, padding=1), (2, 24, 10, 8)),
    "lopsided": (lambda: nn.Conv2d(16, 16, (1, 3), padding=(0, 2), dilation=(1, 2)), (1, 16, 8, 6)),
    "one by one": (lambda: nn.Conv2d(24, 40, 1), (2, 24, 5, 6)),
    "linear": (lambda: nn.Linear(24, 40), (2, 9, 24)),
    "linear without a bias": (lambda: nn.Linear(24, 40, bias=False), (17, 24)),
}


@pytest.fixture(params=LAYERS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Conv2d | nn.Linear, nn.Module, Tensor]:
    """A layer of whole weights with a 127 in every row, it in eight bits, and a whole input of full range."""
    torch.manual_seed(1)
    make, shape = LAYERS[request.param]
    layer, least = make(), -steps() // 3
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape))
        layer.weight.flatten(1)[:, 0] = 127
        x = torch.randint(least, least + steps(), shape).float()
        x.flatten()[0], x.flatten()[1] = least, least + steps()
    return layer, packed(layer, "int8", shape), x


def test_whole_numbers_are_multiplied_exactly(pair: tuple[nn.Conv2d | nn.Linear, nn.Module, Tensor]) -> None:
    """Padding is 0 and no other number; scales leave rows as they are, up to float32's rounding of sums."""
    layer, quick, x = pair
    with torch.no_grad():
        wanted = layer.double()(x.double()).float()
        layer.float()
        torch.testing.assert_close(quick(x), wanted, rtol=1e-6, atol=1e-2)
        # Of another batch and another half of the range.
        wide = torch.cat((x, x / 2, x * 3))
        near = layer(wide)
        assert float((quick(wide) - near).norm() / near.norm()) < 0.02
        assert float((quick(0 * x) - layer(0 * x)).abs().max()) < 1e-6


def test_rounding_is_within_half_a_step(pair: tuple[nn.Conv2d | nn.Linear, nn.Module, Tensor]) -> None:
    """Weights are whole already, so that an output is off by at most half a step times their sizes."""
    layer, quick, x = pair
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    step = float(x.max() - x.min()) / steps()
    bound = float(layer.weight.detach().flatten(1).abs().sum(1).max()) * step
    with torch.no_grad():
        off = (quick(x) - layer(x)).abs()
        assert 0.01 * bound < float(off.max()) < 0.51 * bound
        layer.weight.mul_(2)
        assert torch.equal(quick(x), layer(x))


@pytest.mark.parametrize("shape", [(2, 24, 9, 7), (1, 17, 1, 1), (3, 33, 64, 65), (19, 24), (2, 300, 256)])
def test_kernels_of_our_own_round_as_pytorch_does(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same numbers, borders and all, whether or not there is a second thread for them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    borders = [(0, 0), (1, 1), (2, 0), (0, 3)] if len(shape) == 4 else [(0, 0)]
    for border in borders:
        numbers, *told = int8._cut(x, 254, *border)
        with monkeypatch.context() as without:
            without.setattr(int8, "_kernels", lambda: None)
            wanted, *said = int8._cut(x, 254, *border)
        assert told == said
        assert numbers.is_contiguous(
            memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
        )
        # An x that is halfway between two numbers goes to either, as a machine multiplies and adds.
        assert int((numbers.int() - wanted.int()).abs().max()) <= 1
        assert float((numbers != wanted).float().mean()) < 1e-3


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_makes_none(
    pair: tuple[nn.Conv2d | nn.Linear, nn.Module, Tensor],
    bad: float,
    kernels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is seen by whoever asks for finite results, and no error of whole numbers."""
    if not kernels:
        monkeypatch.setattr(int8, "_kernels", lambda: None)
    _, quick, x = pair
    x.flatten()[5] = bad
    with torch.no_grad():
        assert bool(quick(x).isnan().all())


def test_narrow_layers_stay_in_floats() -> None:
    assert "int8" in ways(nn.Conv2d(16, 16, 3, padding=1), (1, 16, 4, 4))
    assert "int8" not in ways(nn.Conv2d(4, 64, 3, padding=1), (1, 4, 64, 64))
    assert "int8" not in ways(nn.Conv2d(64, 4, 3, padding=1), (1, 64, 64, 64))
    assert quantizable(nn.Linear(64, 64), (2, 77, 64))
    assert not quantizable(nn.Linear(64, 64), (2, 64))


@pytest.fixture(scope="module")
def model() -> Model:
    return sfumato.load("emoji")


def test_the_embedded_model_is_hardly_off(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer that can, faster or not: within 5 % at every level, and pictures near the plain ones."""
    monkeypatch.setattr(prepack, "fastest", lambda layer, shape, able: "int8" if "int8" in able else "")
    own = {"name": "prepack", "int8": True, "kept": str(tmp_path / "ways.json")}
    quick = sfumato.optimize(model, own, count=4, prompt="a red apple, noto")
    network = quick.denoiser.network  # type: ignore[attr-defined]
    layers = [each for each in network.modules() if isinstance(each, PACKED)]
    assert len(layers) > 30
    told = model.conditioner(4, prompt=["a lemon, noto", "a cat", "a king, fluent 3d", ""])
    assert isinstance(told, Condition)
    with torch.no_grad():
        z = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(3))
        for t in (0.99, 0.7, 0.4, 0.1):
            level = model.process(torch.full((4,), t, dtype=torch.float64)).like(z)
            plain, near = (each.denoiser(z, level, told).x0 for each in (model, quick))
            assert 0 < float((near - plain).norm() / plain.norm()) < 0.05
    asked = {"prompt": "a red apple, noto", "seed": 4}
    pictures = [sfumato.generate(each, **asked).tensor for each in (model, quick)]
    assert float((pictures[0] - pictures[1]).square().mean()) < 4 * 10**-3


def test_it_is_chosen_only_where_asked_for(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = set[str]()
    monkeypatch.setattr(prepack, "fastest", lambda layer, shape, names: able.update(names) or "")
    for own in (Prepack(kept=str(tmp_path / "a")), Prepack(kept=str(tmp_path / "b"), winograd=False)):
        sfumato.optimize(model, own, prompt="a cat")
        assert "int8" not in able
    sfumato.optimize(model, Prepack(kept=str(tmp_path / "c"), int8=True), prompt="a cat")
    assert "int8" in able
