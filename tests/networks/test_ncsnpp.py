"""NCSN++ and DDPM++: published sizes, every setting at work, slots, hooks, gradients and refusals.

What the published code says of weights drawn by recipe is in tests/checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_recipes import normal, randomised
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.hooks import Attend, Context, Hooks, Site
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.scaled_residual import ScaledResidualBlock
from sfumato.networks.ncsnpp import HALF_SIGMA, PUBLISHED, NCSNpp
from sfumato.registry import build, describe

SIZES = {
    "cifar_ddpmpp": 61_804_419,
    "cifar_ddpmpp_deep": 106_632_579,
    "cifar_ncsnpp": 62_758_915,
    "cifar_ncsnpp_deep": 107_587_075,
    "cifar_ncsnpp_vp": 62_693_251,
    "celebahq_256": 65_574_549,
    "ffhq_256": 65_574_549,
    "lsun_256": 65_574_549,
    "ffhq_1024": 105_785_896,
    "edm_cifar_vp": 55_733_891,
    "edm_cifar_vp_classes": 55_735_299,
    "edm_cifar_ve": 56_397_827,
    "edm_cifar_ve_classes": 56_400_643,
    "edm_ffhq_64_vp": 61_805_571,
    "edm_ffhq_64_ve": 62_761_091,
    "edm_afhqv2_64_vp": 61_805_571,
    "edm_afhqv2_64_ve": 62_761_091,
}
"""Parameters, counted in the published code; EDM keeps the Fourier features as a buffer, uncounted."""

SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
VARIANTS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"taps": (1, 1), "input": "none"},
    "ddpmpp, smooth": {"input": "none"},
    "ncsnpp of vp": {},
    "ncsnpp": {"embedding": "fourier", "scale_by_sigma": HALF_SIGMA},
    "plain": {"taps": (1, 1)},
    "skip in": {"input": "skip"},
    "skip in, concatenated": {"input": "skip", "combine": "cat"},
    "skip out": {"output": "skip"},
    "skip in and out": {"input": "skip", "output": "skip"},
    "convolutions": {"resblock_updown": False},
    "plain convolutions": {"resblock_updown": False, "taps": (1, 1), "input": "none"},
    "edm": {"taps": (1, 1), "input": "none", "classes": 4, "augment": 3},
}
X, TIME = normal(2, 3, 8, 8), torch.tensor([0.3, -2.0])


def make(name: str, **more: Any) -> NCSNpp:
    return randomised(NCSNpp(**{**SMALL, **VARIANTS[name], **more}))


def run(network: nn.Module, x: Tensor = X, time: Tensor = TIME, **slots: Any) -> Tensor:
    with torch.no_grad():
        return network(x, time, Condition(**slots))


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, atol=1e-3)


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_published_network_has_a_size() -> None:
    assert sorted(SIZES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_published_network_has_its_published_size(name: str) -> None:
    with torch.device("meta"):
        network = NCSNpp.published(name)
        side = 2 ** (len(network.multipliers) - 1)
        x = torch.zeros(1, 3, side, side)
        assert network(x, torch.zeros(1), Condition()).shape == x.shape
    features = network.channels if name.startswith("edm") and network.embedding == "fourier" else 0
    assert sum(p.numel() for p in network.parameters()) == SIZES[name] + features


def test_published_names_are_found_by_settings_and_refused_by_the_nearest() -> None:
    assert NCSNpp.shaped({"blocks": 8, "embedding": "fourier"}) == "cifar_ncsnpp_deep"
    assert NCSNpp.shaped({"blocks": 1}) == "ffhq_1024"
    assert NCSNpp.shaped({"blocks": 3}) == ""
    assert NCSNpp.shaped({"input": "skip", "blocks": 2}) == "celebahq_256 or ffhq_256 or lsun_256"
    with pytest.raises(NotFound, match="did you mean cifar_ncsnpp"):
        NCSNpp.published("cifar_ncsnp")


def test_all_variants_say_something_else_of_the_same_question() -> None:
    """With weights that are alike wherever names and shapes are."""
    answers = {name: run(make(name)) for name in sorted(VARIANTS)}
    names = list(answers)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert [pair for pair in pairs if not differ(answers[pair[0]], answers[pair[1]])] == []


def test_the_way_of_resampling_alone_changes_the_answer() -> None:
    """The very same weights under another filter."""
    for variant in ("ncsnpp of vp", "skip in and out", "convolutions"):
        smooth = make(variant)
        plain = NCSNpp(**{**SMALL, **VARIANTS[variant], "taps": (1, 5, 10, 10, 5, 1)}).eval()
        plain.load_state_dict(smooth.state_dict())
        assert differ(run(smooth), run(plain))


def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = make(name).train()
    told = network.classes + network.augment
    condition = Condition(vector=torch.eye(told)[:2] + 0.1) if told else Condition()
    network(X, TIME, condition).square().sum().backward()
    free = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert free == (["map_noise.W"] if network.embedding == "fourier" else [])
    dead = [
        n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert dead == []


@pytest.mark.parametrize("variant", ["skip in and out", "ncsnpp"])
def test_training_from_the_initial_weights_learns(variant: str) -> None:
    """Two pictures behind noise; the first answer is 0."""
    torch.manual_seed(0)
    network = NCSNpp(**{**SMALL, **VARIANTS[variant], "scale_by_sigma": None})
    target = torch.tanh(normal(2, 3, 8, 8, seed=5))
    assert not run(network).any()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 4e-3)
    losses = []
    for _ in range(30):
        loss = (network(X, TIME, Condition()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_initial_weights_are_of_the_published_variance() -> None:
    """Uniform of variance 1 / mean of fans; a tenth of it in attention; last convolutions zero."""
    torch.manual_seed(0)
    network = NCSNpp(**{**SMALL, "channels": 64})
    block = network.enc["1_block0"]
    assert isinstance(block, ScaledResidualBlock)
    assert block.attention is not None
    for weight, fans in ((block.conv0.weight, 9 * (64 + 128)), (block.affine.weight, 256 + 128)):
        assert weight.var().item() == pytest.approx(2 / fans, rel=0.05)
        assert weight.abs().max() <= math.sqrt(6 / fans)
    assert block.attention.qkv.weight.var().item() == pytest.approx(0.1 / 128, rel=0.05)
    for module in (block.conv1, block.attention.proj_out, network.dec["0_aux_conv"]):
        assert not any(p.any() for p in module.parameters())
    assert not any(p.any() for n, p in network.named_parameters() if n.endswith("bias") and "norm" not in n)


def test_a_block_keeps_the_size_of_features() -> None:
    """(x + f(x)) / sqrt 2: at the start, of variance 1 / 2, and of 1 where f has variance 1 too."""
    block = ScaledResidualBlock(16, 16, 64, 0.0)
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv1.bias)  # type: ignore[arg-type]
    x = normal(2, 16, 8, 8)
    context = Context(torch.zeros(2, 64), Condition())
    torch.testing.assert_close(block(x, context), x / math.sqrt(2))


def test_the_output_is_divided_by_the_sigma_that_is_told() -> None:
    network = make("ncsnpp")
    bare = NCSNpp(**{**SMALL, **VARIANTS["ncsnpp"], "scale_by_sigma": None}).eval()
    bare.load_state_dict(network.state_dict())
    sigma = torch.tensor([0.02, 90.0])
    time = (sigma / 2).log()
    expected = run(bare, time=time) / sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(run(network, time=time), expected, rtol=1e-5, atol=0)
    half = run(network.to(torch.float16), time=time - 15)
    assert half.dtype == torch.float32
    assert 65504 < half.abs().max() < math.inf


def test_rows_stand_alone_and_sizes_need_not_be_square(name: str) -> None:
    network, x = make(name), normal(2, 3, 8, 12)
    both = run(network, x)
    assert both.shape == x.shape
    for i in range(2):
        torch.testing.assert_close(run(network, x[i, None], TIME[i, None])[0], both[i], rtol=1e-4, atol=1e-5)


def test_no_class_is_a_zero_vector_and_classes_and_labels_differ() -> None:
    network = make("edm")
    plain = run(network)
    torch.testing.assert_close(run(network, vector=torch.zeros(2, 4)), plain)
    torch.testing.assert_close(run(network, vector=torch.zeros(2, 7)), plain)
    answers = [plain, *(run(network, vector=row.expand(2, -1)) for row in torch.eye(7))]
    assert all(differ(a, b) for i, a in enumerate(answers) for b in answers[:i])
    # Classes alone may be told too: labels of augmentation are for training.
    for row, answer in zip(torch.eye(4), answers[1:], strict=False):
        torch.testing.assert_close(run(network, vector=row.expand(2, -1)), answer)


def test_channels_stand_beside_x(name: str) -> None:
    network = make(name, in_channels=5)
    beside = normal(2, 2, 8, 8, seed=1)
    assert torch.equal(run(network, channels=beside), run(network, torch.cat((X, beside), dim=1)))
    assert differ(run(network, channels=beside), run(network, channels=-beside))


@pytest.mark.parametrize(
    ("slot", "slots"),
    [
        ("vector", {"vector": torch.zeros(2, 5)}),
        ("tokens", {"tokens": torch.zeros(2, 3, 6)}),
        ("mask", {"mask": torch.ones(2, 3, dtype=torch.bool)}),
        ("image_tokens", {"image_tokens": torch.zeros(2, 3, 5)}),
        ("residuals", {"residuals": (torch.zeros(2, 3, 8, 8),)}),
        ("channels", {"channels": torch.zeros(2, 1, 8, 8)}),
        ("x", {"x": torch.zeros(2, 3, 8, 7)}),
        ("x", {"x": torch.zeros(2, 4, 8, 8)}),
    ],
)
@pytest.mark.parametrize("variant", ["edm", "ncsnpp"])
def test_what_cannot_be_heeded_is_refused_by_name(variant: str, slot: str, slots: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        run(make(variant), **slots)
    assert slot in error.value.where.split(", ")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"embedding": "fourrier"}, "ncsnpp.embedding"),
        ({"input": "residuals"}, "ncsnpp.input"),
        ({"combine": "add"}, "ncsnpp.combine"),
        ({"output": "residual"}, "ncsnpp.output"),
        ({"multipliers": ()}, "ncsnpp.multipliers, blocks"),
        ({"blocks": 0}, "ncsnpp.multipliers, blocks"),
        ({"attention": (16,)}, "ncsnpp.attention"),
        ({"taps": (1, 2, 1)}, "taps"),
        ({"channels": 2}, "ncsnpp.channels, multipliers"),
        ({"channels": 140}, "ncsnpp.channels, multipliers"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidInput) as error:
        NCSNpp(**{**SMALL, **settings})
    assert error.value.where == where


def test_describe_and_build_are_inverse(name: str) -> None:
    network = make(name)
    told = json.loads(json.dumps(describe(network)))
    twin = build("network", told)
    assert describe(twin) == told
    twin.load_state_dict(network.state_dict())
    assert torch.equal(run(twin.eval()), run(network))


class Seen(Hooks):
    """Remembers where it was called, and turns round what the named places say."""

    def __init__(self, *turned: str) -> None:
        self.sites: list[Site] = []
        self.turned = turned

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        self.sites.append(site)
        out = attend(q, k, v)
        return out.flip(2) if site.name in self.turned else out

    def block(self, site: Site, context: Context, run: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        self.sites.append(site)
        out = run(h)
        return out.flip(2) if site.name in self.turned else out


def test_hooks_reach_every_block_and_attention_once_and_change_nothing_by_themselves(name: str) -> None:
    network, seen = make(name), Seen()
    assert torch.equal(run(network, hooks=seen), run(network))
    kinds = {ScaledResidualBlock: "residual", SpatialAttention: "self"}
    expected = {n: kinds[type(m)] for n, m in network.named_modules() if type(m) in kinds}
    assert sorted(site.name for site in seen.sites) == sorted(expected)
    assert {site.name: site.kind for site in seen.sites} == expected
    plain = run(network)
    for site in seen.sites:
        assert not torch.allclose(run(network, hooks=Seen(site.name)), plain, atol=1e-5)
