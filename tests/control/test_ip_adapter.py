"""IP-Adapter: published sizes, parity with diffusers, and what its strength means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from network_recipes import drawn, normal, randomised

from sfumato.checkpoints.sd_unet_config import to_config
from sfumato.checkpoints.sd_unet_keys import table
from sfumato.checkpoints.translation import to_theirs
from sfumato.control.controlnet import ControlNet
from sfumato.control.ip_adapter import PUBLISHED, IPAdapter, sites_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Hooks
from sfumato.networks.controlled import Controlled
from sfumato.networks.hooked import Hooked
from sfumato.networks.layers.embedding import sinusoid
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build, describe

SIZES = {
    "sd1": 22_319_616,
    "sd1_plus": 49_087_488,
    "sd1_full_face": 21_794_304,
    "sdxl": 351_285_248,
    "sdxl_vit_h": 349_188_096,
    "sdxl_plus": 423_748_864,
}
_TINY: dict[str, Any] = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "tokens": 12}
NETWORKS: dict[str, dict[str, Any]] = {
    "sd1": {**_TINY, "attention": (1, 2), "heads": 8},
    "sdxl": {
        **_TINY,
        "head_channels": 16,
        "linear_projection": True,
        "vector": 8 + 6 * 256,
        "attention": (2, 4),
        "depth": (0, 1, 3),
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"count": 4},
    "resampler": {"projection": "resampler", "count": 5, "width": 24, "depth": 4, "heads": 2},
    "layers": {"projection": "layers", "count": 7},
}


def hollow(name: str) -> IPAdapter:
    with torch.device("meta"):
        return IPAdapter.published(name)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_published_parameter_counts(name: str) -> None:
    assert set(SIZES) == set(PUBLISHED)
    adapter = hollow(name)
    assert sum(p.numel() for p in adapter.parameters()) == SIZES[name]
    with torch.device("meta"):
        network = SDUNet.published(name.split("_")[0])
    adapter.check_fits(network)
    # As many as the released files number: 1, 3, .. 31 of version 1, and .. 139 of XL.
    assert list(adapter.ip_adapter)[-1] == ("139" if name.startswith("sdxl") else "31")


def twins(kind: str, network: str) -> tuple[Hooked, Any]:
    """Our network with an adapter, and diffusers' with the same random weights."""
    from diffusers import UNet2DConditionModel

    own = randomised(SDUNet(**NETWORKS[network]))
    reference = UNet2DConditionModel(**{k: v for k, v in to_config(own).items() if not k.startswith("_")})
    reference.load_state_dict(to_theirs(table(own.state_dict()), own.state_dict()))
    adapter = IPAdapter.of(own, seen=10, **KINDS[kind])
    adapter.load_state_dict(drawn(adapter.state_dict(), 5))
    held = adapter.state_dict()
    parts = {
        part: {n.removeprefix(f"{part}."): t for n, t in held.items() if n.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    reference._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    return Hooked(own, adapter).double().eval(), reference.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_parity_with_diffusers(kind: str, network: str) -> None:
    ours, reference = twins(kind, network)
    x, time = normal(2, 4, 8, 16).double(), torch.tensor([3.0, 950.0])
    tokens = normal(2, 9, 12, seed=1).double()
    states = 1 if kind == "linear" else 7
    seen = normal(2, states, 10, seed=2).double()
    told: dict[str, Any] = {}
    vector = None
    if network == "sdxl":
        pooled, sizes = normal(2, 8, seed=2), torch.tensor([[512.0, 768, 0, 64, 1024, 1000]] * 2)
        told = {"text_embeds": pooled, "time_ids": sizes}
        vector = torch.cat((pooled, sinusoid(sizes.flatten(), 256).view(2, -1)), dim=1)
    condition = Condition(tokens=tokens, vector=vector)
    plain = ours.network(x, time, condition)
    for strength in (1.0, 0.6, 0.0):
        for processor in reference.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [strength]
        column = torch.full((2, states, 1), strength).double()
        mine = ours(x, time, replace(condition, image_tokens=torch.cat((seen, column), dim=2)))
        given = {**told, "image_embeds": [seen[:, None] if states > 1 else seen]}
        theirs = reference(x, time, tokens, added_cond_kwargs=given).sample
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        if strength:
            assert (mine - plain).abs().max() > 0.01
        else:
            assert torch.equal(mine, plain)


@torch.no_grad()
def test_every_row_and_every_picture_has_its_own_strength() -> None:
    ours, _ = twins("linear", "sd1")
    x, time = normal(3, 4, 8, 8).double(), torch.full((3,), 7.0)
    condition = Condition(tokens=normal(3, 9, 12, seed=1).double())
    seen, other = normal(3, 1, 10, seed=2).double(), normal(3, 1, 10, seed=3).double()

    def told(strengths: list[float], pictures: torch.Tensor) -> Condition:
        column = torch.tensor(strengths).double().view(-1, 1, 1).expand(-1, pictures.shape[1], 1)
        return replace(condition, image_tokens=torch.cat((pictures, column), dim=2))

    mixed = ours(x, time, told([0.0, 0.5, 1.0], seen))
    for row, strength in enumerate((0.0, 0.5, 1.0)):
        alone = ours(x[row : row + 1], time[:1], told([strength] * 3, seen)[row])
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-10, atol=1e-10)
    assert torch.equal(ours(x, time, condition), ours.network(x, time, condition))
    # Two pictures of which one has no weight still share the attention, and two alike are as one.
    pair = ours(x, time, told([1.0] * 3, torch.cat((seen, seen), dim=1)))
    torch.testing.assert_close(pair, ours(x, time, told([1.0] * 3, seen)), rtol=1e-9, atol=1e-9)
    assert (ours(x, time, told([1.0] * 3, torch.cat((seen, other), dim=1))) - pair).abs().max() > 1e-3


@torch.no_grad()
def test_it_stands_beside_hooks_and_controls() -> None:
    """Hooks of the caller are called with it; a ControlNet of the same network is not advised by it."""
    ours, _ = twins("linear", "sd1")
    control = randomised(ControlNet.of(ours.network)).double()  # type: ignore[arg-type]
    both = Controlled(ours, (control,)).eval()
    x, time = normal(2, 4, 8, 8).double(), torch.full((2,), 7.0)
    condition = Condition(tokens=normal(2, 9, 12, seed=1).double())
    hint = normal(2, 3, 64, 64, seed=4).double()
    image = torch.cat((normal(2, 1, 10, seed=2), torch.ones(2, 1, 1)), dim=2).double()
    made = both(x, time, replace(condition, image_tokens=image, hints=(hint,)))
    residuals = control(x, time, condition, hint)
    expected = ours(x, time, replace(condition, image_tokens=image, residuals=residuals))
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    calls: list[str] = []

    class Seen(Hooks):
        def attention(self, site, context, attend, q, k, v):  # type: ignore[no-untyped-def]
            calls.append(site.name)
            return attend(q, k, v)

    with_hooks = ours(x, time, replace(condition, image_tokens=image, hooks=Seen()))
    assert torch.equal(with_hooks, ours(x, time, replace(condition, image_tokens=image)))
    assert set(sites_of(ours.network)) < set(calls)


def test_a_fresh_one_copies_keys_and_values_and_alone_learns() -> None:
    network = randomised(SDUNet(**NETWORKS["sd1"]))
    adapter = IPAdapter.of(network, seen=10)
    for name, pair in zip(sites_of(network), adapter.ip_adapter.values(), strict=True):
        part = network.get_submodule(name)
        assert torch.equal(pair["to_k_ip"].weight, part.to_k.weight)  # type: ignore[index,union-attr]
        assert torch.equal(pair["to_v_ip"].weight, part.to_v.weight)  # type: ignore[index,union-attr]
        assert pair["to_v_ip"].weight.data_ptr() != part.to_v.weight.data_ptr()  # type: ignore[index,union-attr]
    both = Hooked(network, adapter)
    image = torch.cat((normal(2, 1, 10, seed=2), torch.ones(2, 1, 1)), dim=2)
    condition = Condition(tokens=normal(2, 9, 12), image_tokens=image)
    both(normal(2, 4, 8, 8), torch.full((2,), 7.0), condition).square().mean().backward()
    learnt = {name for name, p in both.named_parameters() if p.requires_grad}
    moved = {name for name, p in both.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learnt == moved == {f"control.{name}" for name in adapter.state_dict()}
    described = describe(both)
    assert describe(build("network", described)) == described
    assert described["control"]["name"] == "ip_adapter"


def test_what_does_not_fit_is_one_sentence() -> None:
    network = SDUNet(**NETWORKS["sd1"])
    adapter = IPAdapter.of(network, seen=10)
    with pytest.raises(InvalidInput, match="an adapter of 7 attentions to tokens of 12 for a network of"):
        Hooked(SDUNet(**{**NETWORKS["sd1"], "tokens": 16}), adapter)
    with pytest.raises(InvalidInput, match="attends to no text"):
        IPAdapter.of(torch.nn.Linear(2, 2))
    with pytest.raises(InvalidInput, match=r"image tokens \(1, 1, 10\) for an adapter of 10"):
        adapter.hooks(torch.zeros(1, 1, 10), network, torch.zeros(1, 4, 8, 8), torch.zeros(1))
    with pytest.raises(InvalidInput, match="from 1"):
        IPAdapter(())
    with pytest.raises(InvalidInput, match="no second attention"):
        network(torch.zeros(1, 4, 8, 8), torch.zeros(1), Condition(image_tokens=torch.zeros(1, 1, 11)))
