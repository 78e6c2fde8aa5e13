"""ADM's noisy classifier: published sizes, and outputs and gradients of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from network_recipes import drawn, normal, randomised
from safetensors import safe_open

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.networks.adm import ADM
from sfumato.networks.adm_classifier import PUBLISHED, ADMClassifier
from sfumato.registry import build, describe

SIZES = {
    "imagenet_64": (64, 65_438_568),
    "imagenet_128": (128, 42_568_040),
    "imagenet_256": (256, 54_096_360),
    "imagenet_512": (512, 54_448_360),
}
"""Pixels and parameters."""

FILE = Path(__file__).parent / "fixtures" / "adm_classifier.safetensors"
with safe_open(FILE, "pt") as _file:
    RECORDED = sorted(_file.metadata())


def test_every_published_classifier_has_a_size() -> None:
    assert sorted(SIZES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_classifier_has_its_published_size(name: str) -> None:
    size, expected = SIZES[name]
    with torch.device("meta"):
        network = ADMClassifier.published(name)
        assert network(torch.zeros(1, 3, size, size), torch.zeros(1), Condition()).shape == (1, 1000)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean imagenet_64"):
        ADMClassifier.published("imagenet64")


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_and_gradients_of_the_published_code(name: str) -> None:
    """Recorded once from openai/guided-diffusion (commit 22e0df8), on weights drawn by recipe."""
    with safe_open(FILE, "pt") as file:
        recipe = json.loads(file.metadata()[name])
        x, time, out, gradient = (
            file.get_tensor(f"{name}.{part}") for part in ("x", "time", "out", "gradient")
        )
    network = build("network", {"name": "adm_classifier", **recipe["settings"]}).eval()
    weights = drawn(network.state_dict(), recipe["seed"])
    checksum = float(sum(w.double().abs().sum() for w in weights.values()))
    assert checksum == pytest.approx(recipe["checksum"], rel=1e-9), "torch draws other numbers than it did"
    network.load_state_dict(weights)
    mine = network(x.requires_grad_(True), time, Condition())
    torch.testing.assert_close(mine, out, rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(mine.log_softmax(1).diagonal()[:3].sum(), x)
    torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=2e-7)


def test_it_is_the_encoder_of_adm() -> None:
    """The same names and shapes, so that a classifier may start from a denoiser's weights."""
    settings = {"channels": 32, "multipliers": (1, 2), "attention": (2,), "blocks": 1, "head_channels": 16}
    whole = ADM(**settings, scale_shift=True, resblock_updown=True).state_dict()
    half = ADMClassifier(**settings, size=8).state_dict()
    shared = {k: v.shape for k, v in half.items() if not k.startswith("out.")}
    assert shared == {k: v.shape for k, v in whole.items() if not k.startswith(("out.", "output_blocks."))}


@pytest.mark.parametrize(("pool", "tells"), [("attention", True), ("adaptive", False)])
def test_the_attention_pool_tells_places_and_the_mean_does_not(pool: str, tells: bool) -> None:
    settings = {"channels": 32, "multipliers": (1,), "attention": (), "head_channels": 16, "size": 8}
    network = randomised(ADMClassifier(**settings, pool=pool))  # type: ignore[arg-type]
    x, time = normal(2, 3, 8, 8), torch.tensor([10.0, 700.0])
    with torch.no_grad():
        plain = network(x, time, Condition())
        network.out[0].register_forward_pre_hook(lambda layer, given: (given[0].roll(4, 3),))
        turned = network(x, time, Condition())
    assert torch.allclose(plain, turned, atol=1e-5) is not tells


def test_maps_of_another_size_and_slots_it_does_not_take_are_refused() -> None:
    network = ADMClassifier(channels=32, head_channels=16, size=8)
    with pytest.raises(InvalidInput, match="a map of 8 x 16 for a classifier of 8 x 8"):
        network(torch.zeros(1, 3, 8, 16), torch.zeros(1), Condition())
    with pytest.raises(InvalidInput) as error:
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), Condition(vector=torch.zeros(1, 10)))
    assert error.value.where == "vector"
    with pytest.raises(InvalidInput, match="10 cannot be halved 2 times"):
        ADMClassifier(size=10)
    with pytest.raises(InvalidInput, match="32 channels do not fall into heads of 24"):
        ADMClassifier(channels=32, multipliers=(1,), size=8, attention=(), head_channels=24)


def test_rows_stand_alone_the_gradient_reaches_every_parameter_and_settings_come_back() -> None:
    network = randomised(ADMClassifier(channels=32, head_channels=16, size=8, multipliers=(1, 2)))
    x, time = normal(3, 3, 8, 8), torch.tensor([0.0, 300.0, 999.0])
    both = network(x, time, Condition())
    torch.testing.assert_close(network(x[1:2], time[1:2], Condition())[0], both[1], rtol=1e-5, atol=1e-5)
    both.square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    told = json.loads(json.dumps(describe(network)))
    assert describe(build("network", told)) == told
