"""Perturbed attention in real networks: what is perturbed, in which rows, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site
from sfumato.core.level import Level
from sfumato.core.mixture import GaussianMixture
from sfumato.core.noise import Noise
from sfumato.core.prediction import Velocity
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.compose import Compose
from sfumato.guidance.perturbed_attention import PerturbedAttention
from sfumato.networks.adm import ADM
from sfumato.networks.dit import DiT
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.mlp import MLP
from sfumato.processes.vp import VP
from sfumato.registry import build, describe

LEVEL = Level(0.8, 0.6)
X = Noise(range(2)).randn((2, 3, 8, 8), "x").double()
GIVEN = Condition(vector=torch.eye(4)[:2].double())
NULL = Condition(vector=torch.zeros(2, 4).double())
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def drawn(network: nn.Module) -> NetworkDenoiser:
    """A denoiser of random weights none of which is zero, so that attention counts."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return NetworkDenoiser(network.eval().double(), VP(), Velocity())


@pytest.fixture(scope="module")
def model() -> NetworkDenoiser:
    settings: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
    return drawn(ADM(**settings, heads=2, classes=4, tokens=5))


class Calls:
    """A denoiser that remembers how many rows it was asked for, and what they were told."""

    def __init__(self, model: NetworkDenoiser) -> None:
        self.model = model
        self.rows: list[int] = []
        self.told: list[Condition] = []

    def __call__(self, x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        self.rows.append(len(x))
        self.told.append(condition)
        return self.model(x, level, condition)


class Identity(Hooks):
    """By hand: in the sites named, places keep their own values, in every row."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return v[:, :, v.shape[2] - q.shape[2] :] if site.name in self.names else attend(q, k, v)


def perturbed(model: NetworkDenoiser, condition: Condition, *names: str) -> Tensor:
    """What a network says whose attentions of these names are the identity."""
    return model(X, LEVEL, replace(condition, hooks=Identity(*names))).x0


def test_the_default_is_the_middle(model: NetworkDenoiser) -> None:
    plain, worse = model(X, LEVEL, GIVEN).x0, perturbed(model, GIVEN, "middle_block.1")
    assert (plain - worse).abs().max() > 0.01
    ours = PerturbedAttention(3.0)(model, NULL)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(ours, plain + 3 * (plain - worse), **CLOSE)


def test_the_identity_map_is_that_of_the_layer(model: NetworkDenoiser) -> None:
    """Inside the middle block: input plus the projection of its values, nothing mixed between places."""
    block = model.network.middle_block[1]  # type: ignore[index]
    assert isinstance(block, SpatialAttention)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    try:
        PerturbedAttention()(model, NULL)(X, LEVEL, GIVEN)
    finally:
        handle.remove()
    ((before, after),) = seen
    flat = before[2:].flatten(2)
    # The published (legacy) layout has heads outermost: q, k and v of 32 channels for each of two.
    values = block.qkv(block.norm(flat)).view(2, 2, 3, 32, -1)[:, :, 2].reshape(2, 64, -1)
    torch.testing.assert_close(after[2:].flatten(2), flat + block.proj_out(values), **CLOSE)


@pytest.mark.parametrize(
    "sites, names",
    [
        (("input_blocks",), ["input_blocks.3.1"]),
        (("middle_block", "output"), ["middle_block.1", "output_blocks.0.1", "output_blocks.1.1"]),
        (("output_blocks.?.1",), ["output_blocks.0.1", "output_blocks.1.1"]),
        (("*.1",), ["input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"]),
    ],
)
def test_sites_are_chosen_by_name(model: NetworkDenoiser, sites: tuple[str, ...], names: list[str]) -> None:
    plain, worse = model(X, LEVEL, GIVEN).x0, perturbed(model, GIVEN, *names)
    ours = PerturbedAttention(2.0, sites)(model, NULL)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(ours, plain + 2 * (plain - worse), **CLOSE)


def test_places_of_text_are_not_values_of_the_map(model: NetworkDenoiser) -> None:
    """Keys of tokens stand before the map's own: the identity is among the map's places."""
    tokens = Noise(range(2)).randn((2, 3, 5), "tokens").double()
    told = replace(GIVEN, tokens=tokens, mask=torch.tensor([[True, False, True], [True] * 3]))
    plain, worse = model(X, LEVEL, told).x0, perturbed(model, told, "middle_block.1")
    ours = PerturbedAttention(2.0)(model, NULL)(X, LEVEL, told).x0
    torch.testing.assert_close(ours, plain + 2 * (plain - worse), **CLOSE)


def test_transformers_and_cross_attention() -> None:
    """In a DiT: self-attentions alone, though the name matches the cross-attention beside."""
    model = drawn(DiT(in_channels=3, out_channels=3, width=32, depth=3, heads=4, classes=4, tokens=5))
    told = replace(GIVEN, tokens=Noise(range(2)).randn((2, 3, 5), "tokens").double())
    plain, worse = model(X, LEVEL, told).x0, perturbed(model, told, "blocks.1.attn")
    assert (plain - worse).abs().max() > 0.01
    ours = PerturbedAttention(2.0, ("blocks.1",))(model, NULL)(X, LEVEL, told).x0
    torch.testing.assert_close(ours, plain + 2 * (plain - worse), **CLOSE)


def test_one_batched_call(model: NetworkDenoiser) -> None:
    calls = Calls(model)
    PerturbedAttention()(calls, NULL)(X, LEVEL, GIVEN)
    assert calls.rows == [4]


def test_no_scale_no_change(model: NetworkDenoiser) -> None:
    assert PerturbedAttention(0.0)(model, NULL) is model


def by_hand(model: NetworkDenoiser, w: float, scale: float) -> Tensor:
    """Both guidances: x0(null) + w (x0(c) - x0(null)) + w scale (x0(c) - x0(c, perturbed))."""
    without, given = model(X, LEVEL, NULL).x0, model(X, LEVEL, GIVEN).x0
    worse = perturbed(model, GIVEN, "middle_block.1")
    return without + w * (given - without) + w * scale * (given - worse)


@pytest.mark.parametrize("order, rows", [("inside", 6), ("around", 8)])
def test_with_classifier_free_guidance(model: NetworkDenoiser, order: str, rows: int) -> None:
    """Either order perturbs conditional rows alone; inside, null rows are not even asked twice."""
    calls, parts = Calls(model), [PerturbedAttention(2.0), ClassifierFree(5.0)]
    inner, outer = parts if order == "inside" else parts[::-1]
    ours = outer(inner(calls, NULL), NULL)(X, LEVEL, GIVEN).x0  # type: ignore[operator]
    assert calls.rows == [rows]
    torch.testing.assert_close(ours, by_hand(model, 5.0, 2.0), **CLOSE)


def test_with_several_conditions(model: NetworkDenoiser) -> None:
    """Every branch but the null's is perturbed."""
    other = Condition(vector=torch.eye(4)[2:].double())
    ours = Compose(3.0, (-1.0,), (other,))(PerturbedAttention(2.0)(model, NULL), NULL)(X, LEVEL, GIVEN).x0
    without = model(X, LEVEL, NULL).x0
    one, two = (
        3 * model(X, LEVEL, c).x0 - 2 * perturbed(model, c, "middle_block.1") - without
        for c in (GIVEN, other)
    )
    torch.testing.assert_close(ours, without + 3 * one - two, **CLOSE)


def test_around_itself(model: NetworkDenoiser) -> None:
    """Two choices of sites: the outer's perturbed rows are guided away from the inner's as well."""
    middle, entry = "middle_block.1", "input_blocks.3.1"
    inner = PerturbedAttention(2.0, (middle,))(model, NULL)
    ours = PerturbedAttention(0.5, (entry,))(inner, NULL)(X, LEVEL, GIVEN).x0
    plain = 3 * model(X, LEVEL, GIVEN).x0 - 2 * perturbed(model, GIVEN, middle)
    worse = 3 * perturbed(model, GIVEN, entry) - 2 * perturbed(model, GIVEN, entry, middle)
    torch.testing.assert_close(ours, plain + 0.5 * (plain - worse), **CLOSE)


def test_around_itself_inside_classifier_free_guidance_is_refused(model: NetworkDenoiser) -> None:
    twice = PerturbedAttention(0.5, ("input",))(PerturbedAttention()(model, NULL), NULL)
    with pytest.raises(InvalidInput, match="which rows are whose"):
        ClassifierFree(2.0)(twice, NULL)(X, LEVEL, GIVEN)


class Louder(Hooks):
    """Another's hook: values of attention doubled, and what blocks give remembered."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return attend(q, k, 2 * v)

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        self.blocks.append(site.name)
        return run(h)


def test_hooks_already_there_stay(model: NetworkDenoiser) -> None:
    """They act in plain and perturbed rows, and around the identity map."""
    hooks = Louder()
    told = replace(GIVEN, hooks=hooks)
    ours = PerturbedAttention(2.0)(model, NULL)(X, LEVEL, told).x0
    assert hooks.blocks
    plain = model(X, LEVEL, replace(GIVEN, hooks=Louder())).x0
    worse = model(X, LEVEL, replace(GIVEN, hooks=Chain(Louder(), Identity("middle_block.1")))).x0
    assert (plain - model(X, LEVEL, GIVEN).x0).abs().max() > 0.01
    torch.testing.assert_close(ours, plain + 2 * (plain - worse), **CLOSE)


class Mean(Hooks):
    """By hand: infinite blur of the queries of the middle."""

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        if site.name != "middle_block.1":
            return attend(q, k, v)
        weights = torch.softmax(q.mean(2, keepdim=True) @ k.transpose(2, 3) / q.shape[3] ** 0.5, dim=3)
        return (weights @ v).expand_as(q)


def test_smoothed_energy(model: NetworkDenoiser) -> None:
    plain, worse = model(X, LEVEL, GIVEN).x0, model(X, LEVEL, replace(GIVEN, hooks=Mean())).x0
    assert (worse - perturbed(model, GIVEN, "middle_block.1")).abs().max() > 1e-3
    ours = PerturbedAttention(2.0, perturbation="smooth")(model, NULL)(X, LEVEL, GIVEN).x0
    torch.testing.assert_close(ours, plain + 2 * (plain - worse), **CLOSE)


def test_levels_and_slots_of_rows_are_repeated(model: NetworkDenoiser) -> None:
    level = VP()(torch.tensor([0.3, 0.8]).double()).like(X)
    extra = tuple(Noise(range(2)).randn((2, 32, 8, 8), "residual").double() for _ in range(2))
    extra += tuple(Noise(range(2)).randn((2, c, 4, 4), "residual").double() for c in (32, 64, 64))
    told = replace(GIVEN, residuals=extra)
    together = PerturbedAttention()(model, NULL)(X, level, told).x0
    for row in range(2):
        alone = PerturbedAttention()(model, NULL)(
            X[row : row + 1], Level(*(part[row].item() for part in level)), told[row]
        ).x0
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=1e-6)


def test_the_variance_of_learned_range_models_is_the_plain_one(model: NetworkDenoiser) -> None:
    def learned(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
        x0 = model(x, level, condition).x0
        return Denoised(x0, x0 + 1)

    variance = PerturbedAttention()(learned, NULL)(X, LEVEL, GIVEN).variance
    assert variance is not None
    torch.testing.assert_close(variance, model(X, LEVEL, GIVEN).x0 + 1, **CLOSE)


def test_networks_without_attention_are_refused() -> None:
    points, x = drawn(MLP(dim=2, width=16)), torch.zeros(2, 2).double()
    with pytest.raises(InvalidInput, match="this network has no self-attention to perturb"):
        PerturbedAttention()(points, Condition())(x, LEVEL, Condition())
    with pytest.raises(InvalidInput, match="no self-attention"):
        PerturbedAttention()(GaussianMixture.gaussian(0.0, 1.0), Condition())(x[:, :1], LEVEL, Condition())


def test_sites_that_do_not_exist_are_refused(model: NetworkDenoiser) -> None:
    with pytest.raises(InvalidInput, match=r"called like down or \?id \(there are input_blocks.3.1, middle_"):
        PerturbedAttention(2.0, ("down", "?id"))(model, NULL)(X, LEVEL, GIVEN)


def test_settings_are_plain_data() -> None:
    guidance = PerturbedAttention(2.0, ("blocks.1*",), "smooth")
    settings = {"name": "perturbed_attention", "scale": 2.0, "sites": ["blocks.1*"], "perturbation": "smooth"}
    assert describe(guidance) == settings
    assert build("guidance", settings) == guidance


@pytest.mark.parametrize(
    "settings", [{"sites": "middle"}, {"sites": ("middle", "")}, {"sites": (1,)}, {"perturbation": "blur"}]
)
def test_mistakes_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        PerturbedAttention(**settings)
