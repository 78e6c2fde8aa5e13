"""GLIGEN: parity of its pieces and of the network they stand in with diffusers', its gates and its share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from network_recipes import drawn, normal, randomised

from sfumato.checkpoints.sd_unet_config import to_config
from sfumato.checkpoints.sd_unet_keys import to_diffusers
from sfumato.conditioners.grounding import grounding_tokens
from sfumato.control.gligen import GatedAttention, Gligen, PositionNet, fourier, places_of, seen_by
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.networks.hooked import Hooked
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build, describe

TINY: dict[str, Any] = {
    "channels": 32, "multipliers": (1, 2), "blocks": 1, "tokens": 12, "attention": (1,), "heads": 8
}  # fmt: skip


def told(rows: int = 2) -> torch.Tensor:
    """Two objects and room for a third, other ones in each row."""
    features = normal(rows, 2, 10, seed=4)
    boxes = ([0.1, 0.2, 0.5, 0.9], [0.25, 0.0, 1.0, 0.5])
    return torch.cat([grounding_tokens(list(features[row]), boxes, 3, 10) for row in range(rows)]).double()


@torch.no_grad()
def test_parity_of_the_pieces() -> None:
    from diffusers.models.attention import GatedSelfAttentionDense
    from diffusers.models.embeddings import (
        GLIGENTextBoundingboxProjection,
        get_fourier_embeds_from_boundingbox,
    )

    tokens = told()
    boxes, there = tokens[..., -5:-1], tokens[..., -1]
    # Their frequencies are of float32.
    expected = get_fourier_embeds_from_boundingbox(8, boxes)
    torch.testing.assert_close(fourier(boxes), expected, rtol=1e-5, atol=1e-5)
    theirs = GLIGENTextBoundingboxProjection(10, 12)
    theirs.load_state_dict(drawn(theirs.state_dict(), 1))
    ours = PositionNet(10, 12)
    ours.load_state_dict(theirs.state_dict())
    made = ours.double()(tokens)
    expected = theirs.double()(boxes, there, tokens[..., :10])
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    gated = GatedSelfAttentionDense(32, 12, 4, 8)
    state = {n: torch.tensor(0.7) if t.ndim == 0 else t for n, t in drawn(gated.state_dict(), 2).items()}
    gated.load_state_dict(state)
    mine = GatedAttention(32, 4, 12)
    mine.load_state_dict(state)
    places, context = normal(2, 20, 32).double(), Context(torch.zeros(2, 1), Condition())
    torch.testing.assert_close(
        mine.double()(places, made, context), gated.double()(places, made), rtol=1e-10, atol=1e-10
    )


@torch.no_grad()
def test_parity_of_the_network_with_boxes() -> None:
    """diffusers' U-Net of kind gated, given the same weights; then its gates are shut as fresh ones are."""
    from diffusers import UNet2DConditionModel

    own = randomised(SDUNet(**TINY))
    control = Gligen.of(own, 10, 12)
    state = drawn(control.state_dict(), 5)
    control.load_state_dict({n: torch.tensor(0.8) if t.ndim == 0 else t for n, t in state.items()})
    config = {k: v for k, v in to_config(own).items() if not k.startswith("_")}
    reference = UNet2DConditionModel(**config, attention_type="gated")
    reference.position_net = type(reference.position_net)(10, 12)
    names = dict(own.state_dict())
    theirs = {to_diffusers(name, 1): tensor for name, tensor in names.items()}
    theirs |= {n: t for n, t in control.state_dict().items() if n.startswith("position_net.")}
    for number, (name, _) in enumerate(places_of(own)):
        # The block's own names tell where its fuser stands.
        block = to_diffusers(f"{name}.norm1.weight", 1).removesuffix("norm1.weight")
        fuser = control.fusers[number].state_dict()
        theirs |= {f"{block}fuser.{inner}": tensor for inner, tensor in fuser.items()}
    reference.load_state_dict(theirs)
    both, reference = Hooked(own, control).double().eval(), reference.double().eval()
    x, time, tokens = (
        normal(2, 4, 8, 8).double(),
        torch.tensor([3.0, 950.0]),
        normal(2, 9, 12, seed=1).double(),
    )
    objects = told()
    condition = Condition(tokens=tokens, image_tokens=objects)
    kwargs = {
        "boxes": objects[..., -5:-1],
        "masks": objects[..., -1],
        "positive_embeddings": objects[..., :10],
    }
    expected = reference(x, time, tokens, cross_attention_kwargs={"gligen": kwargs}).sample
    made = both(x, time, condition)
    plain = own(x, time, Condition(tokens=tokens))
    assert (made - plain).abs().max() > 0.01
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)
    # Rows that are told no object are told what was learnt for none, whatever stands in their boxes.
    none = both(x, time, replace(condition, image_tokens=torch.zeros_like(objects)))
    assert (none - made).abs().max() > 1e-4
    fresh = Hooked(own, Gligen.of(own, 10, 12)).eval()
    assert torch.equal(fresh(x, time, condition), plain)


@torch.no_grad()
def test_it_acts_in_the_first_share_of_the_walk() -> None:
    own = randomised(SDUNet(**TINY)).double()
    state = drawn(Gligen.of(own, 10, 12).state_dict(), 5)
    state = {n: torch.tensor(0.8) if t.ndim == 0 else t for n, t in state.items()}
    whole, part = Gligen.of(own, 10, 12), Gligen.of(own, 10, 12, share=0.3)
    for control in (whole, part):
        control.load_state_dict(state)
    x, tokens = normal(4, 4, 8, 8).double(), normal(4, 9, 12, seed=1).double()
    time = torch.tensor([999.0, 700.0, 699.0, 0.0])
    condition = Condition(tokens=tokens, image_tokens=told(4))
    made = Hooked(own, part).eval()(x, time, condition)
    always, never = Hooked(own, whole).eval()(x, time, condition), own(x, time, Condition(tokens=tokens))
    torch.testing.assert_close(made[:2], always[:2], rtol=1e-12, atol=1e-12)
    assert torch.equal(made[2:], never[2:])
    assert (always[2:] - never[2:]).abs().max() > 1e-3
    part.train()
    torch.testing.assert_close(Hooked(own, part)(x, time, condition), always, rtol=1e-12, atol=1e-12)


def test_places_see_the_boxes_they_lie_in() -> None:
    """Of a map of 2 by 4: which meet, by hand; and masked places heed no token but their own."""
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 1.0, 1.0], [0.3, 0.5, 0.6, 0.9, 1.0], [0.0, 0.0, 1.0, 1.0, 0.0]]])
    bias = seen_by(boxes, (2, 4))
    assert bias.shape == (1, 11, 11)
    met = bias[0, :8, 8:] == math.log(8)
    assert met[:, 0].view(2, 4).tolist() == [[True, False, False, False]] * 2
    assert met[:, 1].view(2, 4).tolist() == [[False] * 4, [False, True, True, False]]
    assert not met[:, 2].any()
    assert bool((bias[0, :8, 8:][~met] == -torch.inf).all())
    assert not bias[0, :, :8].any()
    fuser, h, tokens = randomised(GatedAttention(32, 4, 12)), normal(1, 8, 32), normal(1, 3, 12, seed=1)
    with torch.no_grad():
        fuser.alpha_attn.fill_(0.9)
        plain = fuser(h, tokens, Context(torch.zeros(1, 1), Condition()), bias)
        for token in range(3):
            other = tokens.clone()
            other[:, token] += 1
            moved = (fuser(h, other, Context(torch.zeros(1, 1), Condition()), bias) - plain)[0].abs().amax(1)
            assert (moved > 1e-4).tolist() == met[:, token].tolist()


@torch.no_grad()
def test_boxes_move_what_lies_in_them_on_oblong_maps() -> None:
    """The masked control finds the map's height and width by itself."""
    own = randomised(SDUNet(**TINY))
    control = Gligen.of(own, 10, 12, masked=True)
    state = drawn(control.state_dict(), 5)
    control.load_state_dict({n: torch.tensor(0.8) if t.ndim == 0 else t for n, t in state.items()})
    x, objects = normal(2, 4, 4, 12), told().float()
    seen: list[tuple[int, ...]] = []
    advice = control.hooks(objects, own, x, torch.ones(2))
    for name, block in places_of(own):
        places = 4 * 12 if block.attn1.to_q.out_features == 32 else 2 * 6
        h = normal(2, places, block.attn1.to_q.out_features)
        site = Site(f"{name}.between", "between")
        seen.append(advice.block(site, Context(torch.zeros(2, 1), Condition()), lambda h: h, h).shape)
    assert len(seen) == len(control.fusers)
    tokens = normal(2, 9, 12, seed=1)
    both, condition = Hooked(own, control), Condition(tokens=tokens, image_tokens=objects)
    time = torch.tensor([3.0, 950.0])
    assert float((both(x, time, condition) - own(x, time, Condition(tokens=tokens))).abs().max()) > 1e-3
    assert describe(both)["control"]["masked"] is True


def test_it_alone_learns_and_gates_open_first() -> None:
    """With both gates shut the first step moves them and nothing behind them."""
    own = randomised(SDUNet(**TINY))
    both = Hooked(own, Gligen.of(own, 10, 12))
    condition = Condition(tokens=normal(2, 9, 12, seed=1), image_tokens=told().float())
    x, time = normal(2, 4, 8, 8), torch.tensor([3.0, 950.0])
    target = normal(2, 4, 8, 8, seed=9)
    learnt = [p for p in both.parameters() if p.requires_grad]
    assert {n for n, p in both.named_parameters() if p.requires_grad} == {
        f"control.{n}"
        for n in both.control.state_dict()  # type: ignore[attr-defined]
    }
    optimizer = torch.optim.Adam(learnt, 0.02)
    losses = []
    for step in range(12):
        loss = (both(x, time, condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not step:
            moved = {n for n, p in both.named_parameters() if p.grad is not None and bool(p.grad.any())}
            assert {n.rpartition(".")[2] for n in moved} == {"alpha_attn", "alpha_dense"}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    described = describe(both)
    assert describe(build("network", described)) == described
    assert described["control"]["name"] == "gligen"


def test_what_does_not_fit_is_one_sentence() -> None:
    own = SDUNet(**TINY)
    control = Gligen.of(own, 10, 12)
    with pytest.raises(InvalidInput, match="made for 4 blocks of"):
        Hooked(SDUNet(**{**TINY, "channels": 64}), control)
    with pytest.raises(InvalidInput, match=r"image tokens \(1, 1, 10\)"):
        control.hooks(torch.zeros(1, 1, 10), own, torch.zeros(1, 4, 8, 8), torch.zeros(1))
    with pytest.raises(InvalidInput, match="no box"):
        grounding_tokens([torch.zeros(10)], [[0.5, 0.5, 0.2, 0.9]], text=10)
    with pytest.raises(InvalidInput, match="2 texts and 1 boxes"):
        grounding_tokens([torch.zeros(10)] * 2, [[0.1, 0.1, 0.2, 0.9]], text=10)
    with pytest.raises(InvalidInput, match="no share"):
        Gligen((32,), (4,), share=1.5)
    with pytest.raises(InvalidInput, match="no place for it"):
        Gligen.of(torch.nn.Linear(2, 2))
