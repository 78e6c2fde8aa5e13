"""TAESD: parity with diffusers, its size, and how far its pictures reach."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny
from network_recipes import drawn, normal, randomised

from sfumato.autoencoders.tiny import Tiny
from sfumato.core.errors import InvalidInput
from sfumato.registry import build, describe


def test_the_published_size_and_names() -> None:
    with torch.device("meta"):
        ours, theirs = Tiny().state_dict(), AutoencoderTiny().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    assert sum(tensor.numel() for tensor in ours.values()) == 2_445_063


@pytest.mark.parametrize("levels", [1, 3])
def test_parity_with_diffusers(levels: int) -> None:
    down, up = (1, 2, 3)[:levels], (3, 2, 1)[:levels]
    reference = AutoencoderTiny(
        encoder_block_out_channels=(16,) * levels,
        decoder_block_out_channels=(16,) * levels,
        latent_channels=5,
        num_encoder_blocks=down,
        num_decoder_blocks=up,
    ).eval()
    theirs = drawn(reference.state_dict(), 3)
    reference.load_state_dict(theirs)
    ours = Tiny(5, 16, down, up).eval()
    ours.load_state_dict(theirs)
    image, z = normal(2, 3, 16, 24).clamp(-1, 1), 3 * normal(2, 5, 4, 6, seed=1)
    with torch.no_grad():
        expected = reference.encode(image).latents
        torch.testing.assert_close(ours.encode(image).mean, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(z), reference.decode(z).sample, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.05


def test_there_is_nothing_to_draw() -> None:
    posterior = Tiny(5, 8, (1, 1), (1, 1)).encode(normal(1, 3, 8, 8))
    assert posterior.log_variance is None


def test_latents_are_softly_bounded() -> None:
    autoencoder = randomised(Tiny(2, 8, (1, 1), (1, 1)))
    with torch.no_grad():
        far, farther = (autoencoder.decode(torch.full((1, 2, 4, 4), v)) for v in (1e3, 1e6))
    assert torch.equal(far, farther)


def test_reconstruction_reaches_every_weight() -> None:
    autoencoder = randomised(Tiny(3, 16, (1, 2), (2, 1)))
    image = normal(2, 3, 16, 16).clamp(-1, 1)
    (autoencoder.decode(autoencoder.encode(image).mean) - image).square().mean().backward()
    assert [n for n, q in autoencoder.named_parameters() if q.grad is None or q.grad.abs().max() == 0] == []
    assert autoencoder.last_layer.shape == (3, 16, 3, 3)


def test_descriptions_come_back() -> None:
    described = describe(Tiny(3, 8, (1, 2), (2, 1)))
    assert describe(build("autoencoder", described)) == described


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidInput, match="resolutions"):
        Tiny(encoder_blocks=(1,))
    autoencoder = Tiny(3, 8, (1, 2), (2, 1))
    with pytest.raises(InvalidInput, match="divide by 2"):
        autoencoder.encode(torch.zeros(1, 3, 7, 8))
    with pytest.raises(InvalidInput, match=r"\(B, 3, h, w\)"):
        autoencoder.decode(torch.zeros(1, 4, 7, 8))
