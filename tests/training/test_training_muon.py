"""Muon: its polynomial by singular values, its steps beside PyTorch's, and what it leaves to AdamW."""

import copy

import pytest
import torch
from torch import nn

from sfumato.core.errors import InvalidInput
from sfumato.training.muon import Muon, is_matrix, orthogonalized
from sfumato.training.optimizers import AdamW, flatten_state, restore_state


@pytest.mark.parametrize("shape", [(40, 40), (40, 200)])
def test_only_singular_values_change_and_they_do_by_the_polynomial(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonalized(x), u @ torch.diag_embed(values) @ v, rtol=1e-6, atol=1e-6)
    if shape[1] == 200:
        assert values.min() > 0.65
        assert values.max() < 1.25


def test_float32_is_enough_where_singular_values_differ_by_a_thousand():
    g = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64))[0] for _ in range(2))
    x = (u @ torch.diag(torch.logspace(0, -3, 64, dtype=torch.float64)) @ v)[None]
    assert (orthogonalized(x.float()) - orthogonalized(x)).abs().max() < 1e-4


def layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(48, 96), nn.SiLU(), nn.Linear(96, 40), nn.SiLU(), nn.Linear(40, 3)
    ).double()


def descend(network, optimizers, steps=6):
    x = torch.randn(16, 48, generator=torch.Generator().manual_seed(2)).double()
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (network(x) - x[:, :3] ** 2).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_steps_are_those_of_pytorchs_muon_beside_its_adamw(monkeypatch):
    # PyTorch's own polynomial, held to the same closed form elsewhere, is in bfloat16.
    def turned(gradient, *_):
        flat = gradient if len(gradient) <= gradient[0].numel() else gradient.mT
        made = orthogonalized(flat[None])[0]
        return made if flat is gradient else made.mT

    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", turned)
    ours, theirs = layers(), layers()
    settings = AdamW(rate=3e-3, weight_decay=0.1, matrices="muon")
    descend(ours, [settings.build(dict(ours.named_parameters()))])
    matrices = [theirs[0].weight, theirs[2].weight]
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    vectors, thin = [p for p in rest if p.ndim == 1], [theirs[4].weight]
    muon = torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": thin, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    descend(theirs, [muon, torch.optim.AdamW(groups, lr=3e-3)])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_kernels_are_matrices_of_their_rows():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(32, 16, 3, 3))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(32, 16, 3, 3)
    kernel.grad, flat.grad = gradient, gradient.flatten(1).clone()
    Muon([{"params": [kernel, flat], "matrices": True}], 0.95, lr=1e-2, weight_decay=0.0).step()
    assert torch.equal(kernel.flatten(1), flat)
    assert torch.equal(kernel.grad, gradient)


def test_a_direction_seen_rarely_moves_as_far_as_one_seen_often():
    often, rare = torch.eye(32)[0], torch.eye(32)[1]
    for optimizer, even in ((AdamW(1e-2, matrices="muon"), True), (AdamW(1e-2), False)):
        weight = nn.Parameter(torch.zeros(32, 32))
        built = optimizer.build({"weight": weight})
        for _ in range(20):
            # Of two facts one has a hundredth of the gradient, in directions that share their coordinates.
            turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
            weight.grad = turn @ (torch.outer(often, often) + 0.01 * torch.outer(rare, rare)) @ turn
            built.step()
        moved = turn.mT @ weight.detach() @ turn.mT
        ratio = (moved[1, 1] / moved[0, 0]).item()
        assert (0.5 < ratio < 2) if even else ratio < 0.2


def test_tables_thin_ends_and_vectors_are_left_to_adam():
    big = nn.Parameter(torch.zeros(64, 64))
    assert is_matrix("network.layers.0.weight", big)
    assert not is_matrix("conditioner.token_embedding.weight", big)
    assert not is_matrix("network.position", big)
    assert not is_matrix("conditioner.words.weight", nn.Parameter(torch.zeros(640, 32)))
    assert is_matrix("network.input_blocks.1.0.emb_layers.1.weight", nn.Parameter(torch.zeros(32, 640)))
    assert not is_matrix("network.out.weight", nn.Parameter(torch.zeros(16, 64, 3, 3)))
    assert not is_matrix("network.norm.weight", nn.Parameter(torch.zeros(64)))


def test_its_memory_goes_by_name():
    one, two = layers(), layers()
    settings = AdamW(rate=1e-2, matrices="muon")
    first = settings.build(dict(one.named_parameters()))
    descend(one, [first])
    state = copy.deepcopy(flatten_state(first, {p: n for n, p in one.named_parameters()}))
    assert {"momentum.0.weight", "momentum.2.weight", "exp_avg.4.weight", "exp_avg.0.bias"} <= set(state)
    assert "exp_avg.0.weight" not in state
    two.load_state_dict(one.state_dict())
    second = settings.build(dict(two.named_parameters()))
    restore_state(second, {p: n for n, p in two.named_parameters()}, state)
    for network, optimizer in ((one, first), (two, second)):
        descend(network, [optimizer], 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(InvalidInput, match=r"optimizer\.momentum"):
        AdamW(momentum=1.0)
