"""NCSNv2's RefineNet: published sizes, and outputs of the published code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from network_recipes import drawn, normal, randomised
from safetensors import safe_open

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.hooks import Hooks
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.prediction import Score
from sfumato.core.reverse import ReverseProcess
from sfumato.networks.ncsnv2 import PUBLISHED, InstanceNormPlus, NCSNv2
from sfumato.processes.ncsn import NCSN
from sfumato.registry import build, describe

SIZES = {
    "cifar": 29_694_083,
    "celeba_64": 29_694_083,
    "lsun_church": 83_445_379,
    "lsun_bedroom": 83_445_379,
    "lsun_tower": 83_445_379,
    "ffhq_256": 94_132_611,
    "ncsn_cifar": 30_117_635,
}
"""Parameters, counted in the published code."""

FILE = Path(__file__).parent / "fixtures" / "ncsnv2.safetensors"
with safe_open(FILE, "pt") as _file:
    RECORDED = sorted(_file.metadata())


def small(**settings: object) -> NCSNv2:
    return NCSNv2(**{"channels": 4, **settings})  # type: ignore[arg-type]


def test_every_published_network_has_a_size() -> None:
    assert sorted(SIZES) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_network_has_its_published_size(name: str) -> None:
    with torch.device("meta"):
        network = NCSNv2.published(name)
        x = torch.zeros(1, 3, 32, 32)
        assert network(x, torch.zeros(1), Condition()).shape == x.shape
    assert sum(p.numel() for p in network.parameters()) == SIZES[name]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean cifar"):
        NCSNv2.published("cifar10")


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_of_the_published_code(name: str) -> None:
    """Recorded once from ermongroup/ncsnv2, commit 1bcea03, on weights drawn by recipe.

    There the data lie in [0, 1]; here in [-1, 1], so that the noise is twice as large and the score half.
    """
    with safe_open(FILE, "pt") as file:
        recipe = json.loads(file.metadata()[name])
        told = {k.partition(".")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(name + ".")}  # noqa: SIM118
    network = build("network", {"name": "ncsnv2", **recipe["settings"]}).eval()
    weights = drawn(network.state_dict(), recipe["seed"])
    checksum = float(sum(w.double().abs().sum() for w in weights.values()))
    assert checksum == pytest.approx(recipe["checksum"], rel=1e-9), "torch draws other numbers than it did"
    network.load_state_dict(weights)
    time = told["label"].float() if network.levels else (2 * told["sigma"]).log()
    expected = told["out"] if network.levels else told["out"] / 2
    with torch.no_grad():
        mine = network(2 * told["x"] - 1, time, Condition())
    for row, out in zip(mine, expected, strict=True):
        # Rows differ in scale by sigma: each is compared on its own.
        torch.testing.assert_close(row, out, rtol=1e-5, atol=1e-5 * out.abs().max().item())


def test_it_is_not_told_the_noise_but_divided_by_it() -> None:
    network = randomised(small())
    x = normal(1, 3, 8, 8).expand(3, -1, -1, -1)
    sigma = torch.tensor([0.01, 1.0, 50.0])
    out = network(x, sigma.log(), Condition())
    scaled = out * sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(scaled[0], scaled[1])
    torch.testing.assert_close(scaled[2], scaled[1])


def test_as_a_denoiser_its_raw_output_is_the_noise_negated() -> None:
    """x0 = x + sigma² score = x + sigma · raw, at any level of its process."""
    network, process = randomised(small()), NCSN(0.02, 100.0, 20)
    denoiser = NetworkDenoiser(network, process, Score(), "log_sigma")
    x = normal(2, 3, 8, 8)
    raw = network(x, torch.zeros(2), Condition())
    for t in (0.05, 0.45, 1.0):
        sigma = process(t).sigma
        torch.testing.assert_close(
            denoiser(x, process(t), Condition()).x0, x + sigma * raw, rtol=1e-4, atol=1e-4
        )
    reverse = ReverseProcess(denoiser, process, source=Noise([0, 1]))
    torch.testing.assert_close(reverse.score(x, 0.5), raw / process(0.5).sigma, rtol=1e-3, atol=1e-4)


def test_ncsn_tells_its_levels_apart_and_takes_the_nearer() -> None:
    network = randomised(small(levels=5))
    x = normal(1, 3, 8, 8).expand(4, -1, -1, -1)
    out = network(x, torch.tensor([1.0, 1.4, 2.0, 9.0]), Condition())
    assert torch.equal(out[0], out[1])
    assert (out[0] - out[2]).abs().max() > 0.1
    torch.testing.assert_close(out[3:], network(x[:1], torch.tensor([4.0]), Condition()))
    # By the time input `index` level k of the process is row k of the table.
    denoiser = NetworkDenoiser(network, process := NCSN(0.1, 10.0, 5), Score(), "index")
    level = process(torch.tensor([0.4], dtype=torch.float64)).like(x)
    expected = x[:1] + level.sigma**2 * out[:1]
    torch.testing.assert_close(denoiser(x[:1], Level(*level), Condition()).x0, expected)


def test_the_norm_keeps_the_means_it_takes_away() -> None:
    """Closed form: after it channel c has mean gamma · alpha · z_c + beta and standard deviation gamma."""
    norm = InstanceNormPlus(4)
    with torch.no_grad():
        norm.alpha.copy_(torch.tensor([0.5, 1.0, 2.0, 0.0]))
        norm.gamma.copy_(torch.tensor([1.0, 3.0, 0.5, 2.0]))
        norm.beta.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    shift = torch.tensor([3.0, -1.0, 0.5, 7.0])
    h = normal(2, 4, 16, 16) + shift.view(1, 4, 1, 1)
    out = norm(h, None)  # type: ignore[arg-type]
    m = h.mean((2, 3))
    z = (m - m.mean(1, keepdim=True)) / m.std(1, keepdim=True)
    torch.testing.assert_close(
        out.mean((2, 3)), norm.gamma * norm.alpha * z + norm.beta, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(out.std((2, 3), correction=0), norm.gamma.expand(2, 4), rtol=1e-4, atol=1e-4)


def test_hooks_see_every_residual_block_and_change_nothing_by_themselves() -> None:
    network, seen = randomised(small()), []

    class Watch(Hooks):
        def block(self, site, context, run, h):  # type: ignore[no-untyped-def]
            seen.append(site.name)
            return run(h)

    x, time = normal(1, 3, 8, 8), torch.zeros(1)
    out = network(x, time, Condition(hooks=Watch()))
    assert torch.equal(out, network(x, time, Condition()))
    assert seen == [f"res{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]

    class Skip(Hooks):
        def block(self, site, context, run, h):  # type: ignore[no-untyped-def]
            return h if site.name == "res4.1" else run(h)

    assert not torch.allclose(out, network(x, time, Condition(hooks=Skip())))


def test_a_row_does_not_depend_on_its_batch() -> None:
    network = randomised(small()).double()
    x, time = normal(3, 3, 8, 8).double(), torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    whole = network(x, time, Condition())
    torch.testing.assert_close(whole[1:2], network(x[1:2], time[1:2], Condition()), rtol=1e-12, atol=1e-12)


def test_what_it_cannot_take_is_refused() -> None:
    network = small()
    with pytest.raises(InvalidInput, match="vector"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), Condition(vector=torch.ones(1, 2)))
    with pytest.raises(InvalidInput, match="multiple of 2"):
        network(torch.zeros(1, 3, 9, 8), torch.zeros(1), Condition())
    with pytest.raises(InvalidInput, match="dilations"):
        NCSNv2(channels=4, multipliers=(1, 2))


def test_it_is_described_by_its_settings() -> None:
    network = small(multipliers=(1, 2), dilations=(1, 2), levels=3)
    described = {"name": "ncsnv2", "channels": 4, "multipliers": [1, 2], "dilations": [1, 2], "levels": 3}
    assert describe(network) == described
    again = build("network", described)
    assert again.state_dict().keys() == network.state_dict().keys()


def test_fresh_weights_start_at_a_score_of_the_noises_size() -> None:
    """Of order 1 / sigma before training, at every level: what technique 3 is for."""
    torch.manual_seed(0)
    network = small(channels=16)
    for sigma in (0.01, 1.0, 50.0):
        x = sigma * normal(4, 3, 16, 16)
        out = network(x, torch.full((4,), math.log(sigma)), Condition())
        assert 0.01 / sigma < out.std() < 10 / sigma
