"""The latent space: scale and shift, draws, safe precision, sizes, and a model saved with its autoencoder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from network_recipes import normal, randomised
from torch import Tensor

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.tiny import Tiny
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints import native
from sfumato.conditioners.nothing import Nothing
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.core.noise import Noise
from sfumato.core.prediction import Velocity
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.processes.vp import VP
from sfumato.registry import build, describe
from sfumato.spaces.latent import Latent, measure_scale

IMAGE = normal(3, 3, 16, 24).clamp(-1, 1)


def kl() -> KL:
    return randomised(KL(2, 8, (1, 2), 1))


def test_x_is_the_mean_moved_and_scaled_and_comes_back() -> None:
    space = Latent(kl(), scale=1.5, shift=0.25)
    assert isinstance(space.autoencoder, KL)
    z = space.autoencoder.encode(IMAGE).mean
    x = space.encode(IMAGE)
    torch.testing.assert_close(x, 1.5 * (z - 0.25))
    torch.testing.assert_close(space.decode(x), space.autoencoder.decode(z).clamp(-1, 1), atol=1e-5, rtol=0)
    assert space.decode(100 * x).abs().max() == 1
    assert not x.requires_grad


def test_draws_are_those_of_the_posterior_each_by_its_seed() -> None:
    space = Latent(kl(), scale=2.0)
    assert isinstance(space.autoencoder, KL)
    x = space.encode(IMAGE, Noise([4, 5, 6]))
    expected = space.autoencoder.encode(IMAGE).sample(Noise([4, 5, 6]))
    torch.testing.assert_close(x, 2 * expected)
    torch.testing.assert_close(space.encode(IMAGE[1:2], Noise([5])), x[1:2])
    assert (x - space.encode(IMAGE)).abs().mean() > 0.1


def test_latents_of_vq_are_those_before_the_codes() -> None:
    autoencoder = randomised(VQ(5, 2, 8, (1, 2), 1))
    space = Latent(autoencoder, scale=1.0)
    x = space.encode(IMAGE, Noise([0, 1, 2]))
    torch.testing.assert_close(x, autoencoder.quant_conv(autoencoder.encoder(IMAGE)))
    found = autoencoder.quantize(x)
    assert len(x.unique()) > len(found.z.unique())
    torch.testing.assert_close(space.decode(x), space.decode(found.z))


def test_nothing_is_trained_or_revived_through_the_space() -> None:
    space = Latent(randomised(VQ(50, 2, 8, (1, 2), 1, revive_after=1)))
    before = copy.deepcopy(space.state_dict())
    space.train()
    assert space.training
    assert not any(module.training for module in space.autoencoder.modules())  # type: ignore[union-attr]
    for _ in range(4):
        space.decode(space.encode(IMAGE).requires_grad_())
    assert all(torch.equal(before[name], tensor) for name, tensor in space.state_dict().items())
    assert not any(parameter.requires_grad for parameter in space.parameters())


def test_gradients_reach_x_and_the_picture() -> None:
    """As guidance through the decoder needs."""
    space = Latent(kl().double())
    x = normal(1, 2, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: space.decode(x)[..., 2:4, 2:4], x)
    image = IMAGE[:1].double().requires_grad_()
    (found,) = torch.autograd.grad(space.encode(image).square().sum(), image)
    assert (found != 0).all()


# Precision --------------------------------------------------------------------------------------------------


def loud(precision: str) -> KL:
    """Features of 1e5 in the decoder, which half precision cannot hold; the picture is of the usual size."""
    autoencoder = KL(2, 8, (1, 2), 1, precision=precision)  # type: ignore[arg-type]
    autoencoder = randomised(autoencoder)
    autoencoder.decoder.conv_in.weight.data *= 2e4
    return autoencoder


def test_overflow_is_done_again_in_float32_with_a_warning() -> None:
    space, wide = Latent(loud("float16").half()), Latent(loud("float32").half())
    x = normal(1, 2, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = wide.decode(x)
    with pytest.warns(UserWarning, match=r"overflowed float16.*float32"):
        found = space.decode(x)
    assert torch.equal(found, expected)
    assert torch.isfinite(found).all()
    assert found.std() > 0.1
    assert {p.dtype for p in space.parameters()} == {torch.float16}


@pytest.mark.parametrize("precision, held", [("bfloat16", torch.bfloat16), ("float32", torch.bfloat16)])
def test_what_is_declared_is_computed_in(precision: str, held: torch.dtype) -> None:
    """Half-precision weights in float32 give what float32 gives of them; declared bfloat16 gives less."""
    autoencoder = randomised(KL(2, 8, (1, 2), 1, precision=precision)).to(held)  # type: ignore[arg-type]
    x = normal(1, 2, 4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Latent(autoencoder).decode(x)
    exact = Latent(copy.deepcopy(autoencoder).double()).decode(x.double())
    error = (found.double() - exact).abs().max()
    assert error < 1e-5 if precision == "float32" else 1e-3 < error < 0.2
    assert Latent(autoencoder).encode(IMAGE).dtype == torch.float32


def test_weights_held_in_more_are_not_narrowed() -> None:
    autoencoder = randomised(KL(2, 8, (1, 2), 1, precision="float16")).double()
    assert Latent(autoencoder).decode(normal(1, 2, 4, 6).double()).dtype == torch.float64


def test_autocast_does_not_take_the_numbers_back() -> None:
    space, x = Latent(kl()), normal(1, 2, 4, 6)
    expected, latents = space.decode(x), space.encode(IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(space.decode(x), expected)
        assert torch.equal(space.encode(IMAGE), latents)


def test_weights_that_are_broken_are_told() -> None:
    autoencoder = kl()
    autoencoder.decoder.conv_out.bias.data[0] = float("nan")
    space = Latent(autoencoder)
    with pytest.raises(NotFinite, match=r"space.*float32"):
        space.decode(normal(1, 2, 4, 4))
    autoencoder.half().precision = "float16"
    with pytest.warns(UserWarning, match="once more"), pytest.raises(NotFinite, match="float32"):
        space.decode(normal(1, 2, 4, 4))
    # The fault is the walk's, which tells it better.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.decode(torch.full((1, 2, 4, 4), float("nan"))).isnan().any()


# Sizes ------------------------------------------------------------------------------------------------------


def test_sizes_and_the_nearest_that_can_be() -> None:
    space = Latent(kl(), multiple=4)
    assert space.shape(16, 24) == (2, 8, 12)
    with pytest.raises(InvalidInput, match=r"30 x 13 is not a multiple of 8 .*try 32 x 16"):
        space.shape(13, 30)
    with pytest.raises(InvalidInput, match=r"try 8 x 8"):
        space.shape(0, 1)
    with pytest.raises(InvalidInput, match=r"try 16 x 16"):
        space.encode(torch.zeros(1, 3, 20, 16))


@pytest.mark.parametrize(
    "work, match",
    [
        (lambda: Latent(kl(), channels=3), "latent.channels: 3, but 2"),
        (lambda: Latent(kl(), factor=4), "latent.factor: 4, but 2"),
        (lambda: Latent(scale=0.0), "scale"),
        (lambda: Latent(scale=float("nan")), "scale"),
        (lambda: Latent(shift=float("inf")), "shift"),
        (lambda: Latent(tile=100), "multiple of 8 from 64"),
        (lambda: Latent(tile=32), "multiple of 8 from 64"),
        (lambda: Latent(kl()).decode(torch.zeros(1, 3, 4, 4)), r"\(B, 2, h, w\)"),
        (lambda: Latent(kl()).encode(torch.zeros(3, 16, 16)), r"\(B, 3, H, W\)"),
        (lambda: Latent(kl()).encode(torch.zeros(1, 4, 16, 16)), r"\(B, 3, H, W\)"),
        (lambda: Latent(kl()).encode(IMAGE, Noise([1])), "1 seeds for 3"),
    ],
)
def test_what_does_not_fit_is_named(work: Callable[[], object], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        work()


def test_without_an_autoencoder_it_is_refused_before_a_walk() -> None:
    space = Latent(multiple=2)
    assert space.latent_shape(32, 48) == (4, 4, 6)
    for work in (
        lambda: space.shape(32, 32),
        lambda: space.encode(IMAGE),
        lambda: space.decode(torch.zeros(1, 4, 4, 4)),
    ):
        with pytest.raises(InvalidInput, match="autoencoder that turns them into pictures is not part"):
            work()


# Scale ------------------------------------------------------------------------------------------------------


def test_the_scale_gives_unit_variance_over_all_batches() -> None:
    autoencoder, batches = kl(), [normal(2, 3, 16, 16, seed=n).clamp(-1, 1) for n in range(3)]
    scale = measure_scale(autoencoder, batches, seed=7)
    drawn = [
        autoencoder.encode(batch).sample(Noise([7 + 2 * n, 8 + 2 * n])) for n, batch in enumerate(batches)
    ]
    assert scale * torch.cat(drawn).double().std(correction=0).item() == pytest.approx(1, abs=1e-9)
    means = torch.cat([autoencoder.encode(batch).mean for batch in batches])
    assert abs(scale * means.std().item() - 1) > 0.05
    # However they are cut into batches.
    assert measure_scale(autoencoder, [torch.cat(batches)], seed=7) == pytest.approx(scale, rel=1e-5)


def test_a_scale_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="variance 0"):
        measure_scale(kl(), [])
    dead = randomised(VQ(5, 2, 8, (1, 2), 1))
    torch.nn.init.zeros_(dead.quant_conv.weight)
    torch.nn.init.zeros_(dead.quant_conv.bias)
    with pytest.raises(InvalidInput, match="variance"):
        measure_scale(dead, [IMAGE])


# Whole models -----------------------------------------------------------------------------------------------


def model(autoencoder: KL | VQ | Tiny) -> Model:
    torch.manual_seed(0)
    network = ADM(autoencoder.channels, autoencoder.channels, 8, (1, 2), 1, ())
    space = Latent(autoencoder, multiple=2, scale=0.7, shift=0.1, tile=64)
    return Model(NetworkDenoiser(network, VP(), Velocity()).eval(), Nothing(), space, {"steps": 3})


@pytest.mark.parametrize(
    "autoencoder",
    [
        KL(2, 8, (1, 2), 1, (2,)),
        VQ(9, 2, 8, (1, 2), 1, revive_after=3),
        Tiny(2, 8, (1, 1), (1, 1)),
    ],
    ids=["kl", "vq", "tiny"],
)
def test_a_model_is_saved_with_its_autoencoder(autoencoder: KL | VQ | Tiny, tmp_path: Path) -> None:
    saved = model(autoencoder)
    native.save(saved, tmp_path)
    loaded = native.read(tmp_path)
    assert loaded.describe() == saved.describe()
    assert describe(build("space", describe(saved.space))) == describe(saved.space)
    mine, his = saved.modules()["space"].state_dict(), loaded.modules()["space"].state_dict()
    assert mine.keys() == his.keys() == {f"autoencoder.{name}" for name in autoencoder.state_dict()}
    assert all(torch.equal(mine[name], his[name]) for name in mine)
    assert not any(parameter.requires_grad for parameter in loaded.modules()["space"].parameters())
    made = [generate(each, size=(16, 16), steps=2, seed=3).tensor for each in (saved, loaded)]
    assert torch.equal(*made)
    assert made[0].shape == (1, 3, 16, 16)
    x: Tensor = loaded.space.encode(IMAGE)
    assert torch.equal(x, saved.space.encode(IMAGE))


def test_copies_are_apart() -> None:
    space = Latent(kl())
    other = copy.deepcopy(space)
    other.autoencoder.decoder.conv_out.bias.data += 1  # type: ignore[union-attr]
    x = normal(1, 2, 4, 4)
    assert not torch.equal(space.decode(x), other.decode(x))
    assert space.to(torch.float64).decode(x.double()).dtype == torch.float64
