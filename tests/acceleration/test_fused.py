"""What is fused says what its parts say, to rounding, and only where it is meant to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato
from sfumato.acceleration import fused
from sfumato.acceleration.fused import Fused, FusedGEGLU, FusedNormSiLU
from sfumato.core.condition import Condition
from sfumato.networks.layers.normalization import NormSiLU
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.spatial_transformer import GEGLU
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build

needs_compiler = pytest.mark.skipif(fused._kernels() is None, reason="no compiler")


def norm(channels: int, groups: int = 32) -> NormSiLU:
    """One whose weights are drawn, and ask for no gradients."""
    torch.manual_seed(1)
    made = NormSiLU(channels, 1e-6, groups).requires_grad_(False)
    made.weight.normal_()
    made.bias.normal_()
    return made


def maps(*shape: int) -> Tensor:
    """Far from zero, channels last, and each channel by as much as it likes."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, generator=draw) * torch.arange(1.0, shape[1] + 1)[:, None, None] + 30
    return x.contiguous(memory_format=torch.channels_last)


def gate(width: int, out: int) -> tuple[GEGLU, FusedGEGLU]:
    torch.manual_seed(3)
    plain = GEGLU(width, out).requires_grad_(False)
    return plain, FusedGEGLU.of(nn.Sequential(plain), "0")


@needs_compiler
@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (48, 16), (6, 3), (7, 1), (320, 32)])
@pytest.mark.parametrize("sides", [(1, 1), (5, 7), (32, 33), (64, 64)])
def test_a_norm_is_one_in_twice_the_precision(channels: int, groups: int, sides: tuple[int, int]) -> None:
    """By as little as float32 tells: of means that are many deviations from zero no more is lost."""
    plain, x = norm(channels, groups), maps(2, channels, *sides)
    made = FusedNormSiLU.of(plain)(x)
    wanted = plain.double()(x.double())
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert float((made - wanted).abs().max() / wanted.abs().max()) < 2e-5


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 8), (130, 300), (2, 4096, 24)])
def test_a_gate_is_one_in_twice_the_precision(shape: tuple[int, ...]) -> None:
    plain, made = gate(shape[-1], 37)
    x = 9 * torch.randn(shape, generator=torch.Generator().manual_seed(4))
    said = made(x)
    both = plain.proj(x).double()
    wanted = GEGLU.gated(both)
    assert said.shape == wanted.shape
    assert float(((said - wanted).abs() / (both.chunk(2, -1)[0].abs() * 1e-6 + 1e-6)).max()) < 5


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(bad: float) -> None:
    x = maps(2, 32, 9, 9)
    x[1, 3, 4, 5] = bad
    said = FusedNormSiLU.of(norm(32, 8))(x)
    assert bool(said[0].isfinite().all())
    assert bool(said[1, :4].isnan().all())
    assert bool(said[1, 4:].isfinite().all())
    _, made = gate(8, 16)
    rows = torch.randn(4, 8)
    rows[2, 1] = bad
    assert made(rows).isfinite().all(-1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", ["channels first", "double", "gradients", "weights ask", "rows"])
def test_what_it_is_not_for_is_computed_as_before(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_kernels", lambda: pytest.fail("its kernels were asked"))
    plain, x = norm(32), maps(2, 32, 6, 6)
    if kind == "channels first":
        x = x.contiguous()
    elif kind == "double":
        x, plain = x.double(), plain.double()
    elif kind == "gradients":
        x.requires_grad_()
    elif kind == "weights ask":
        plain.requires_grad_()
    else:
        x = x.flatten(2)
    assert torch.equal(FusedNormSiLU.of(plain)(x), plain(x))
    before, made = gate(6, 8)
    rows = torch.randn(3, 6, requires_grad=True)
    assert torch.equal(made(rows), before(rows))


def residual(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, ResidualBlock)]


def _drawn(module: Any) -> Any:
    torch.manual_seed(5)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.1)
    return module.eval().requires_grad_(False)


@needs_compiler
def test_networks_say_what_they_said_and_share_their_weights() -> None:
    """A U-Net's two of every residual block and the last, and an autoencoder's."""
    net = _drawn(SDUNet(channels=32, multipliers=(1, 2), attention=(1, 2), heads=2, tokens=12, blocks=1))
    x = maps(2, 4, 16, 16) / 30
    told = Condition(tokens=torch.randn(2, 5, 12))

    def run(network: Any) -> Tensor:
        made: Tensor = network(x, torch.tensor([3.0, 700.0]), told)
        return made

    quick = Fused().prepare(net, run)
    kinds = [type(part) for part in quick.modules()]
    assert kinds.count(FusedNormSiLU) == 2 * len(residual(net)) + 1
    assert not {GEGLU, NormSiLU} & set(kinds)
    assert {name: each.data_ptr() for name, each in quick.state_dict().items()} == {
        name: each.data_ptr() for name, each in net.state_dict().items()
    }
    torch.testing.assert_close(run(quick), run(net), rtol=1e-4, atol=1e-5)
    # Weights are read as they are, not as they were.
    before = run(quick)
    for parameter in net.parameters():
        parameter.mul_(1.1)
    assert not torch.allclose(run(quick), before)
    torch.testing.assert_close(run(quick), run(net), rtol=1e-4, atol=1e-5)
    autoencoder = _drawn(build("autoencoder", {"name": "kl", "width": 32, "multipliers": [1, 2]}))
    z = maps(1, 4, 8, 8) / 30
    quick = Fused().prepare(autoencoder, lambda each: each.decode(z))
    assert FusedNormSiLU in [type(part) for part in quick.modules()]
    torch.testing.assert_close(quick.decode(z), autoencoder.decode(z), rtol=1e-4, atol=1e-5)


def test_norms_that_are_shifted_before_their_silu_are_left() -> None:
    net = _drawn(SDUNet(channels=32, multipliers=(1,), attention=(), heads=2, blocks=1))
    adm = build(
        "network", {"name": "adm", "channels": 32, "multipliers": [1], "blocks": 1, "scale_shift": True}
    )
    for each, count in ((net, 2), (adm, 1)):
        for part in residual(each):
            assert sum(isinstance(inner, NormSiLU) for inner in part.modules()) == count


def test_without_a_compiler_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    net = nn.Sequential(norm(32))
    assert Fused().prepare(net, lambda each: each) is net
    assert Fused().prepare(nn.Identity(), lambda each: each).__class__ is nn.Identity


def test_pictures_are_the_same_but_for_rounding() -> None:
    model = sfumato.load("emoji")
    asked: dict[str, Any] = {"prompt": "a red apple, noto", "seed": 3, "steps": 6}
    plain = sfumato.generate(model, **asked).tensor
    quick = sfumato.generate(model, fast=[{"name": "prepack", "kept": None}, "fused"], **asked).tensor
    assert float((quick - plain).abs().max()) < 1e-3
