"""The KL autoencoder: published sizes, parity with diffusers, and the closed forms of its posterior."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from network_recipes import drawn, normal, randomised
from torch import nn
from torch.distributions import Normal, kl_divergence

from sfumato.autoencoders.kl import KL, PUBLISHED
from sfumato.checkpoints.diffusers_config import vae_to_config
from sfumato.checkpoints.vae_keys import from_diffusers
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.core.noise import Noise
from sfumato.core.posterior import Posterior
from sfumato.registry import build, describe

COUNTS = {"f4": 55_312_063, "f8": 83_653_863, "f16": 69_610_963, "f32": 103_880_131, "f8_16": 83_819_683}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(PUBLISHED)
    with torch.device("meta"):
        autoencoder = KL.published(name)
    assert count(autoencoder) == COUNTS[name]


def test_parts_of_the_published_f8() -> None:
    with torch.device("meta"):
        f8 = KL.published("f8")
    assert [count(part) for part in (f8.quant_conv, f8.post_quant_conv)] == [72, 20]
    assert round(count(f8.encoder) / 1e4) == 3416
    assert round(count(f8.decoder) / 1e4) == 4949
    assert len(f8.state_dict()) == 248
    assert f8.factor == 8


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_shapes_of_latents(name: str) -> None:
    with torch.device("meta"):
        autoencoder = KL.published(name)
        posterior = autoencoder.encode(torch.empty(1, 3, 256, 192))
        image = autoencoder.decode(posterior.mean)
    factor = autoencoder.factor
    assert posterior.mean.shape == (1, autoencoder.channels, 256 // factor, 192 // factor)
    assert image.shape == (1, 3, 256, 192)


def test_an_unknown_published_name() -> None:
    with pytest.raises(NotFound, match="f8"):
        KL.published("f9")


@pytest.mark.parametrize(
    "attention, mid, quant", [((), True, True), ((2,), True, False), ((1,), False, True)]
)
def test_parity_with_diffusers(attention: tuple[int, ...], mid: bool, quant: bool) -> None:
    kinds = [2**level in attention for level in range(2)]
    reference = AutoencoderKL(
        down_block_types=["AttnDownEncoderBlock2D" if k else "DownEncoderBlock2D" for k in kinds],
        up_block_types=["AttnUpDecoderBlock2D" if k else "UpDecoderBlock2D" for k in reversed(kinds)],
        block_out_channels=(32, 64),
        layers_per_block=2,
        latent_channels=5,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        mid_block_add_attention=mid,
        # One head, as the published code has; diffusers' attention blocks outside the middle split theirs.
    ).eval()
    for module in reference.modules():
        if hasattr(module, "to_q"):
            module.heads = 1
    theirs = drawn(reference.state_dict(), 3)
    reference.load_state_dict(theirs)
    ours = KL(5, 32, (1, 2), 2, attention, mid, quant).eval()
    ours.load_state_dict(from_diffusers(theirs))
    image, z = normal(2, 3, 16, 24).clamp(-1, 1), normal(2, 5, 8, 12, seed=1)
    with torch.no_grad():
        expected, posterior = reference.encode(image).latent_dist, ours.encode(image)
        torch.testing.assert_close(posterior.mean, expected.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(posterior.log_variance, expected.logvar, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(posterior.kl(), expected.kl(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(z), reference.decode(z).sample, rtol=1e-5, atol=1e-5)
    assert expected.mean.std() > 0.1


def posterior() -> Posterior:
    mean, log_variance = normal(2, 3, 4, 5).double(), normal(2, 3, 4, 5, seed=1).double()
    return Posterior(mean, log_variance)


def test_divergence_is_that_of_torch_summed_over_a_row() -> None:
    p = posterior()
    expected = kl_divergence(Normal(p.mean, p.std), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(p.kl(), expected, rtol=1e-12, atol=0)
    zero = torch.zeros(1, 2, 3, 3)
    assert Posterior(zero, zero).kl() == 0


def test_draws_have_the_moments_and_belong_to_their_seed() -> None:
    mean = torch.tensor([0.3, -2.0]).view(1, 2, 1, 1).expand(2, 2, 100, 100)
    log_variance = torch.tensor([1.0, -3.0]).view(1, 2, 1, 1).expand(2, 2, 100, 100)
    p = Posterior(mean, log_variance)
    z = p.sample(Noise([5, 6]))
    torch.testing.assert_close(z.mean((2, 3)), mean[:, :, 0, 0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var((2, 3)), log_variance[:, :, 0, 0].exp(), atol=0, rtol=0.05)
    alone = Posterior(mean[1:], log_variance[1:]).sample(Noise([6]))
    assert torch.equal(alone, z[1:])


def test_the_gradient_of_a_draw_reaches_both_moments() -> None:
    p = posterior()
    mean, log_variance = p.mean.requires_grad_(), p.log_variance
    assert log_variance is not None
    z = Posterior(mean, log_variance.requires_grad_()).sample(Noise([1, 2]))
    by_mean, by_log_variance = torch.autograd.grad(z.sum(), [mean, log_variance])
    assert torch.equal(by_mean, torch.ones_like(mean))
    torch.testing.assert_close(by_log_variance, (z - mean).detach() / 2)


def test_log_variances_are_bounded() -> None:
    p = Posterior(torch.zeros(1, 1, 1, 2), torch.tensor([[[[-1e4, 1e4]]]]))
    assert p.log_variance is not None
    assert p.log_variance.flatten().tolist() == [-30, 20]
    assert torch.isfinite(p.kl()).all()


def test_a_certain_posterior_is_a_point() -> None:
    mean = normal(2, 3, 4, 4)
    p = Posterior(mean)
    assert torch.equal(p.sample(Noise([0, 1])), mean)
    assert torch.equal(p.kl(), torch.zeros(2))
    assert torch.equal(p.std, torch.zeros_like(mean))


def test_reconstruction_reaches_every_weight() -> None:
    autoencoder = randomised(KL(3, 8, (1, 2), 1, (2,)))
    image = normal(2, 3, 8, 8).clamp(-1, 1)
    p = autoencoder.encode(image)
    loss = (autoencoder.decode(p.sample(Noise([0, 1]))) - image).abs().mean() + 1e-3 * p.kl().mean()
    loss.backward()
    # Keys' biases move all scores of a softmax alike, which moves nothing.
    still = [n for n, q in autoencoder.named_parameters() if q.grad is None or q.grad.abs().max() == 0]
    assert [n for n in still if not n.endswith(".k.bias")] == []
    assert autoencoder.last_layer is autoencoder.decoder.conv_out.weight


def test_packed_latents_are_the_loose_ones_in_squares() -> None:
    loose = randomised(KL(4, 8, (1, 2), 1))
    packed = KL(16, 8, (1, 2), 1, pack=2)
    packed.load_state_dict(loose.state_dict())
    image = normal(2, 3, 8, 12).clamp(-1, 1)
    p, q = loose.encode(image), packed.encode(image)
    assert packed.factor == 4
    assert q.mean.shape == (2, 16, 2, 3)
    for mine, other in ((q.mean, p.mean), (q.std, p.std)):
        squares = other.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        assert torch.equal(mine, squares)
    torch.testing.assert_close(q.kl(), p.kl())
    assert torch.equal(packed.decode(q.mean), loose.decode(p.mean))
    with pytest.raises(InvalidInput, match="does not pack"):
        vae_to_config(packed, 1.0, 0.0)


def test_descriptions_come_back() -> None:
    autoencoder = KL(3, 8, (1, 2), 1, (2,), precision="bfloat16")
    described = describe(autoencoder)
    assert described["attention"] == [2]
    assert describe(build("autoencoder", described)) == described
    assert build("autoencoder", described).state_dict().keys() == autoencoder.state_dict().keys()


@pytest.mark.parametrize(
    "work, match",
    [
        (lambda: KL(attention=(3,)), "attention.*1, 2, 4, 8"),
        (lambda: KL(multipliers=()), "whole numbers"),
        (lambda: KL(channels=0), "whole numbers"),
        (lambda: KL(channels=6, pack=2), "6 channels are not packed by 2"),
        (lambda: KL(pack=0), "not packed by 0"),
        (lambda: KL(3, 8, (1, 2), 1).encode(torch.zeros(1, 3, 9, 8)), "divide by 2"),
        (lambda: KL(3, 8, (1, 2), 1).encode(torch.zeros(1, 4, 8, 8)), r"\(B, 3"),
        (lambda: KL(3, 8, (1, 2), 1).decode(torch.zeros(1, 4, 8, 8)), r"\(B, 3"),
        (lambda: KL(3, 8, (1, 2), 1).decode(torch.zeros(3, 8, 8)), r"\(B, 3"),
    ],
)
def test_what_does_not_fit_is_named(work, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInput, match=match):
        work()
