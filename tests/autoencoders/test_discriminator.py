"""The patch discriminator: published size, what a logit sees, and whose gradients flow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.autoencoders.discriminator import PatchGAN
from sfumato.core.errors import InvalidInput


def test_published_size_and_logits() -> None:
    with torch.device("meta"):
        network = PatchGAN()
        assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    assert sum(p.numel() for p in network.parameters()) == 2_765_633


def test_a_logit_sees_seventy_pixels() -> None:
    torch.manual_seed(0)
    network = PatchGAN(width=4).double()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            # Statistics of the batch would let every logit see everything a little.
            part.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    network(image)[0, 0, 6, 6].backward()
    assert image.grad is not None
    rows = (image.grad[0].abs().sum((0, 2)) > 0).nonzero()[:, 0]
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_first_weights() -> None:
    torch.manual_seed(0)
    network = PatchGAN()
    kernels = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    norms = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert kernels.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(kernels.mean().item()) < 1e-4
    assert norms.mean().item() == pytest.approx(1, abs=0.003)
    assert norms.std().item() == pytest.approx(0.02, rel=0.15)


def test_seen_by_the_other_player_it_stands_still() -> None:
    torch.manual_seed(0)
    network = PatchGAN(width=4, layers=2)
    image = torch.randn(3, 3, 16, 16, requires_grad=True)
    made = network.frozen(image)
    assert torch.equal(made, network(image))
    made.mean().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert all(p.grad is None for p in network.parameters())


def test_pictures_too_small_are_refused() -> None:
    with pytest.raises(InvalidInput, match="use fewer layers"):
        PatchGAN(width=4)(torch.zeros(1, 3, 16, 16))
