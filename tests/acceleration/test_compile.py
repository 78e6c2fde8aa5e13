"""Compiled blocks: the same numbers, by as few pieces of code as there are kinds of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import sfumato
from sfumato.acceleration.compile import Compile
from sfumato.acceleration.packed import packed
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Hooks
from sfumato.model import Model
from sfumato.networks.dit import DiT
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build, describe


@pytest.fixture
def network() -> nn.Module:
    """A U-Net of eighteen blocks, of which some are alike."""
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    made = SDUNet(channels=32, multipliers=(1, 2), attention=(2,), tokens=16, heads=2).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def blocks(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if type(part).__name__.startswith("Compiled")]


def told(seed: int, batch: int = 2, **more: Any) -> tuple[Tensor, Tensor, Condition]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 5, 16, generator=draw)
    return torch.randn(batch, 4, 8, 8, generator=draw), torch.rand(batch, generator=draw), Condition(
        tokens=tokens, **more
    )  # fmt: skip


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@torch.inference_mode()
def same(fast: nn.Module, plain: nn.Module, *given: Any) -> bool:
    return torch.equal(fast(*given), plain(*given))


def test_blocks_alike_share_code_and_nothing_of_a_walk_makes_new(network: nn.Module) -> None:
    fast = Compile(backend="eager").prepare(network, lambda _: None)
    held = blocks(fast)
    kinds = {
        (type(part), tuple(tuple(p.shape) for p in part.parameters()), getattr(part, "resample", None))
        for part in held
    }
    assert same(fast, network, *told(1))
    first = graphs()
    # A kind may stand at two sizes of the map; code for each block would be eighteen pieces.
    assert len(kinds) <= first < len(held)
    for seed in (2, 3):
        assert same(fast, network, *told(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    assert same(fast, network, *told(2))
    assert graphs() == first


def test_weights_are_shared_and_keep_their_names(network: nn.Module) -> None:
    fast = Compile(backend="eager").prepare(network, lambda _: None)
    mine, own = dict(fast.named_parameters()), dict(network.named_parameters())
    assert list(mine) == list(own)
    assert all(mine[name] is own[name] for name in own)
    assert not blocks(network)


def test_hooks_and_gradients_take_the_plain_way(network: nn.Module) -> None:
    class Doubling(Hooks):
        def attention(self, site: Any, context: Any, attend: Any, q: Any, k: Any, v: Any) -> Any:
            return 2 * attend(q, k, v)

    fast = Compile(backend="eager").prepare(network, lambda _: None)
    assert same(fast, network, *told(1, hooks=Doubling()))
    x, time, condition = told(2)
    made = fast(x.requires_grad_(), time, condition)
    made.sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert graphs() == 0


def test_more_shapes_than_said_are_computed_as_before(network: nn.Module) -> None:
    fast = Compile(backend="eager", shapes=2).prepare(network, lambda _: None)
    for batch in (1, 2, 3):
        assert same(fast, network, *told(1, batch))
    # Of each of the two classes of blocks.
    assert graphs() <= 4


def test_packed_blocks_and_networks_without_any_are_left_alone(network: nn.Module) -> None:
    def prepared(module: nn.Module) -> nn.Module:
        return Compile(backend="eager").prepare(module, lambda _: None)

    every = len(blocks(prepared(network)))
    block: Any = network.get_submodule("input_blocks.1.0")
    block.out_layers[3] = packed(block.out_layers[3], "winograd", (2, 32, 8, 8))
    fast = prepared(network)
    assert len(blocks(fast)) == every - 1
    assert same(fast, network, *told(1))
    linear = nn.Linear(2, 2)
    assert prepared(linear) is linear


def test_code_made_for_this_machine_is_the_network_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    torch.manual_seed(0)
    network = DiT(in_channels=4, out_channels=4, patch=2, width=32, depth=1, heads=2, classes=0).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    fast = Compile().prepare(network, lambda _: None)
    x, time, _ = told(1)
    with torch.inference_mode():
        made, wanted = fast(x, time, Condition()), network(x, time, Condition())
    assert not torch.equal(made, torch.zeros_like(made))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_draws_the_same_through_it() -> None:
    torch.compiler.reset()
    model = sfumato.load("emoji")
    fast: Model = sfumato.optimize(model, {"name": "compile", "backend": "eager"})
    asked = {"prompt": "a red apple, noto", "steps": 2, "seed": 3}
    assert torch.equal(sfumato.generate(fast, **asked).tensor, sfumato.generate(model, **asked).tensor)


def test_settings_are_said_and_read(network: nn.Module) -> None:
    one = Compile(mode="max-autotune", shapes=3)
    assert build("acceleration", describe(one)) == one
    with pytest.raises(InvalidInput, match="none of default"):
        Compile(mode="fastest")
    with pytest.raises(InvalidInput, match="no number from 1"):
        Compile(shapes=0)
    with pytest.raises(InvalidInput, match="no backend 'indictor'"):
        Compile(backend="indictor").prepare(network, lambda _: None)
