"""Hooks in real networks: neutral when they do nothing, called at every place, traced by torch.compile."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from network_recipes import normal
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site
from sfumato.networks.adm import ADM
from sfumato.networks.dit import DiT
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.encoder import Stage
from sfumato.networks.layers.residual import ResidualBlock
from sfumato.networks.layers.scaled_residual import ScaledResidualBlock
from sfumato.networks.layers.spatial_transformer import Attention, Between
from sfumato.networks.layers.spatial_transformer import TransformerBlock as PlacesBlock
from sfumato.networks.layers.transformer import CrossAttention, SelfAttention, TransformerBlock
from sfumato.networks.mlp import MLP
from sfumato.networks.ncsnpp import NCSNpp
from sfumato.networks.sd_unet import SDUNet

KINDS: dict[type[nn.Module], str] = {
    SpatialAttention: "self",
    SelfAttention: "self",
    CrossAttention: "cross",
    ResidualBlock: "residual",
    ScaledResidualBlock: "residual",
    TransformerBlock: "transformer",
    PlacesBlock: "transformer",
    Stage: "stage",
    Between: "between",
}
ATTENTIONS = ("self", "cross")


def _make(name: str) -> nn.Module:
    if name == "mlp":
        return MLP(dim=3, width=32, depth=3, classes=4)
    if name == "dit":
        return DiT(in_channels=3, out_channels=3, width=32, depth=3, heads=4, classes=4, tokens=5)
    if name == "sd_unet":
        places = {"attention": (1, 2), "cross_only": (1,), "depth": (1, 2)}
        return SDUNet(in_channels=3, out_channels=3, **{**UNET, **places})
    settings = {"scale_shift": True, "resblock_updown": True} if name == "adm, residual resampling" else {}
    return ADM(**UNET, **settings)


UNET: dict[str, Any] = {
    **{"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,)},
    **{"heads": 2, "classes": 4, "tokens": 5},
}
NAMES = ["adm", "adm, residual resampling", "dit", "mlp", "ncsnpp", "sd_unet"]


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    network = _make(request.param)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
    return network.eval()


def call(network: nn.Module, hooks: Hooks | None = None, masked: bool = True) -> Tensor:
    """The network's answer to one fixed question."""
    vector = torch.eye(4)[:2]
    mask = torch.tensor([[True, True, False], [True, True, True]]) if masked else None
    condition = Condition(vector=vector, tokens=normal(2, 3, 5), mask=mask, hooks=hooks)
    if isinstance(network, MLP | NCSNpp):
        condition = replace(condition, tokens=None, mask=None)
    x = normal(2, 3) if isinstance(network, MLP) else normal(2, 3, 8, 8)
    with torch.no_grad():
        return network(x, torch.tensor([10.0, 700.0]), condition)


def sites(network: nn.Module) -> dict[str, str]:
    """{module path: kind} of every place where a hook must be called, by the modules' types."""
    found = {n: KINDS[type(m)] for n, m in network.named_modules() if type(m) in KINDS}
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            found[name] = "cross" if module.to_k.in_features == 5 else "self"
    if isinstance(network, MLP):
        found |= {f"blocks.{i}": "residual" for i in range(network.depth)}
    return found


class Seen(Hooks):
    """Does nothing but remember."""

    def __init__(self) -> None:
        self.attentions: list[Site] = []
        self.blocks: list[Site] = []
        self.contexts: list[Context] = []

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        assert q.ndim == 4
        assert k.shape == v.shape
        assert q.shape[:2] == k.shape[:2]
        self.attentions.append(site)
        self.contexts.append(context)
        out = attend(q, k, v)
        assert out.shape == q.shape
        return out

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        self.blocks.append(site)
        self.contexts.append(context)
        return run(h)


class Silenced(Hooks):
    """Attention at the named places says nothing."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return torch.zeros_like(q) if site.name in self.names else attend(q, k, v)


class Halved(Hooks):
    """Attention and what blocks add, halved."""

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return attend(q, k, v) / 2

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        return run(h) / 2


@pytest.mark.parametrize("masked", [False, True])
def test_hooks_that_do_nothing_change_no_bit(network: nn.Module, masked: bool) -> None:
    plain = call(network, masked=masked)
    for hooks in (Hooks(), Seen(), Chain(), Chain(Hooks(), Seen(), Hooks())):
        assert torch.equal(call(network, hooks, masked), plain)


def test_hooks_reach_every_attention_and_block_by_name_and_kind(network: nn.Module) -> None:
    seen = Seen()
    call(network, seen)
    expected = sites(network)
    assert expected
    names = Counter(site.name for site in (*seen.attentions, *seen.blocks))
    assert names == Counter(list(expected))  # each place exactly once a call
    assert {s.name: s.kind for s in (*seen.attentions, *seen.blocks)} == expected
    assert all(s.kind in ATTENTIONS for s in seen.attentions)
    assert not any(s.kind in ATTENTIONS for s in seen.blocks)
    for site in (*seen.attentions, *seen.blocks):
        assert network.get_submodule(site.name).site == site


def test_hooks_see_the_condition_and_the_embedding_told_to_blocks(network: nn.Module) -> None:
    seen = Seen()
    call(network, seen)
    (first, *rest) = seen.contexts
    assert all(context is first for context in rest)
    assert first.hooks is seen
    assert torch.equal(first.condition.vector, torch.eye(4)[:2])
    assert first.embedding.shape[0] == 2


def test_silencing_an_attention_is_silencing_its_projection(network: nn.Module) -> None:
    attentions = [name for name, kind in sites(network).items() if kind in ATTENTIONS]
    if isinstance(network, MLP):
        assert not attentions
        return
    plain = call(network)
    answers = []
    for name in attentions:
        changed = call(network, Silenced(name))
        answers.append(changed)
        assert not torch.allclose(changed, plain, atol=1e-4)
        # Attention that says zero leaves the bias of its projection, and nothing else in the network changes.
        module = network.get_submodule(name)
        named = {SpatialAttention: "proj_out", Attention: "to_out.0"}
        projection = module.get_submodule(named.get(type(module), "proj"))
        weight = projection.weight.data
        projection.weight.data = torch.zeros_like(weight)
        try:
            torch.testing.assert_close(changed, call(network), rtol=1e-5, atol=1e-5)
        finally:
            projection.weight.data = weight
    assert torch.equal(call(network, Silenced("no such place")), plain)
    pairs = [(a, b) for i, a in enumerate(answers) for b in answers[:i]]
    assert not any(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_skipped_block_is_the_network_without_its_effect(network: nn.Module) -> None:
    """Hooks around a block decide what it returns, and blocks before it do not notice."""
    names = [n for n, kind in sites(network).items() if kind not in ATTENTIONS]
    target = names[len(names) // 2]
    outputs: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}

    class Watch(Hooks):
        def __init__(self, change: bool) -> None:
            self.change = change

        def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
            out = run(h)
            out = out.flip(0) if self.change and site.name == target else out
            outputs[self.change][site.name] = out
            return out

    call(network, Watch(False))
    call(network, Watch(True))
    order = list(outputs[False])
    assert order == list(outputs[True])
    place = order.index(target)
    for name in order[:place]:
        assert torch.equal(outputs[False][name], outputs[True][name])
    assert torch.equal(outputs[True][target], outputs[False][target].flip(0))
    for name in order[place + 1 :]:
        assert not torch.equal(outputs[False][name], outputs[True][name])


def test_a_chain_nests_as_its_parts(network: nn.Module) -> None:
    halves = call(network, Chain(Halved(), Hooks(), Seen()))
    assert torch.equal(halves, call(network, Halved()))
    assert not torch.allclose(halves, call(network), atol=1e-4)
    assert not torch.allclose(call(network, Chain(Halved(), Halved())), halves, atol=1e-4)


def test_hooks_may_lengthen_the_keys(network: nn.Module) -> None:
    """Keys and values twice over weigh as once: attention is a mean."""

    class Twice(Hooks):
        def attention(
            self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
        ) -> Tensor:
            return attend(q, torch.cat((k, k), dim=2), torch.cat((v, v), dim=2))

    plain = call(network, masked=False)
    torch.testing.assert_close(call(network, Twice(), masked=False), plain, rtol=1e-5, atol=1e-5)


def test_networks_with_hooks_compile_into_one_graph(network: nn.Module) -> None:
    """With a chain of hooks, whose graph holds all that is there without them."""
    torch._dynamo.reset()
    hooks = Chain(Hooks(), Halved())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        out = call(compiled, hooks) if not isinstance(network, MLP) else _points(compiled, hooks)
    expected = call(network, hooks)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def _points(network: Callable[..., Tensor], hooks: Hooks) -> Tensor:
    condition = Condition(vector=torch.eye(4)[:2], hooks=hooks)
    with torch.no_grad():
        return network(normal(2, 3), torch.tensor([10.0, 700.0]), condition)
