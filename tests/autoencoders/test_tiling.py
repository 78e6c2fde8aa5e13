"""Tiles: exact where what is computed is local, without seams where it is not, and small."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_recipes import normal, randomised
from torch import Tensor

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.tiny import Tiny
from sfumato.core.errors import InvalidInput
from sfumato.core.meta import on_meta
from sfumato.generation.memory import peak_bytes
from sfumato.spaces.latent import Latent
from sfumato.spaces.tiling import tiled

SIDES = [16, 17, 24, 25, 28, 29, 31, 40, 41, 53, 64]


def blur(radius: int, x: Tensor) -> Tensor:
    """The mean of a neighbourhood, zeros outside: what a convolution of this reach does, edges included."""
    side = 2 * radius + 1
    return F.avg_pool2d(F.pad(x, (radius,) * 4), side, 1, divisor_override=1) / side**2


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("tile, overlap, margin", [(16, 8, 3), (16, 4, 1), (16, 5, 2)])
def test_what_reaches_no_farther_than_the_margin_is_exact(
    side: int, tile: int, overlap: int, margin: int
) -> None:
    x = normal(2, 3, side, 30).double()
    whole, pieces = blur(margin, x), tiled(lambda p: blur(margin, p), x, tile, overlap, margin)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-14)


def test_what_reaches_farther_than_the_margin_is_not() -> None:
    x = normal(1, 1, 28, 28).double()
    assert (tiled(lambda p: blur(2, p), x, 16, 4, 1) - blur(2, x)).abs().max() > 1e-3


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("inputs, outputs", [(1, 3), (2, 1), (4, 1)])
def test_sizes_that_change(side: int, inputs: int, outputs: int) -> None:
    """Enlarged by repetition and halved by means: exact, as both are local."""
    x = normal(1, 2, side * inputs, 20 * inputs).double()

    def run(piece: Tensor) -> Tensor:
        small = F.avg_pool2d(piece, inputs)
        return F.interpolate(small, scale_factor=float(outputs))

    made = tiled(run, x, 16, 4, 0, inputs, outputs)
    torch.testing.assert_close(made, run(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", SIDES)
def test_between_tiles_that_disagree_there_is_a_ramp(side: int) -> None:
    """Tiles filled with the number of their turn: one fades into the next by even steps, nowhere faster."""
    turn = iter(range(1000))
    made = tiled(lambda p: torch.full_like(p, next(turn)), torch.zeros(1, 1, side, 16).double(), 16, 8, 2)
    line = made[0, 0, :, 0]
    count = next(turn) - 1
    assert line[0] == 0
    assert line[-1] == count
    steps = line.diff()
    assert (steps >= 0).all()
    assert steps.max() <= 1 / 4 + 1e-12
    assert (made == line[:, None]).all()


def test_rows_are_apart() -> None:
    x = normal(3, 2, 40, 20)
    runs: list[int] = []

    def run(piece: Tensor) -> Tensor:
        runs.append(len(piece))
        return blur(4, piece)

    made = tiled(run, x, 16, 8, 1)
    assert set(runs) == {1}
    assert torch.equal(made[1:2], tiled(run, x[1:2], 16, 8, 1))


def test_the_gradient_goes_through() -> None:
    x = normal(1, 1, 40, 20).double().requires_grad_()
    (by_tiles,) = torch.autograd.grad(tiled(lambda p: blur(1, p), x, 16, 8, 1).square().sum(), x)
    (by_whole,) = torch.autograd.grad(blur(1, x).square().sum(), x)
    torch.testing.assert_close(by_tiles, by_whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("tile, overlap, margin", [(16, 9, 0), (16, 4, 2), (16, 0, 0), (16, 4, -1)])
def test_tiles_that_cannot_be(tile: int, overlap: int, margin: int) -> None:
    with pytest.raises(InvalidInput, match="share"):
        tiled(lambda p: p, torch.zeros(1, 1, 40, 40), tile, overlap, margin)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """Its decoder and encoder reach 4 and 3 places far."""
    return randomised(Tiny(2, 8, (0, 1), (1, 0))).double()


def test_a_local_autoencoder_is_exact_in_tiles(tiny: Tiny) -> None:
    whole, pieces = Latent(tiny, scale=1.0), Latent(tiny, scale=1.0, tile=128)
    image, x = normal(1, 3, 150, 200).double().clamp(-1, 1), normal(1, 2, 75, 100).double()
    with torch.no_grad():
        torch.testing.assert_close(pieces.encode(image), whole.encode(image), rtol=0, atol=1e-12)
        torch.testing.assert_close(pieces.decode(x), whole.decode(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_seams_where_norms_and_attention_see_the_whole(seed: int) -> None:
    """Tiles have means and variances of their own: what that changes is not heaped where they meet."""
    autoencoder = randomised(KL(3, 8, (1, 2), 1), seed).double()
    x = F.interpolate(normal(1, 3, 5, 5, seed=seed).double(), (48, 48), mode="bicubic")
    with torch.no_grad():
        whole = autoencoder.decode(x)
        faded = tiled(autoencoder.decode, x, 32, 8, 2, outputs=2)
        butted = torch.cat([autoencoder.decode(part) for part in x.split(24, dim=3)], dim=3)

    def seam(image: Tensor) -> float:
        """The worst step between columns about the middle that the whole does not have, against the usual."""
        steps = (image - whole).diff(dim=3).abs().mean((0, 1, 2))
        return float(steps[40:56].max() / steps.median())

    assert seam(faded) < 2
    assert seam(butted) > 3


def test_memory_is_that_of_a_tile() -> None:
    """Beside the picture itself, decoding 16 times as many pixels takes no more than one tile does."""
    autoencoder = on_meta(KL(4, 16, (1, 2, 2), 1))
    tiles, whole = Latent(autoencoder, tile=128), Latent(autoencoder)

    def decoding(space: Latent, places: int) -> int:
        x = torch.empty(1, 4, places, places, device="meta")
        with torch.no_grad():
            return peak_bytes(lambda: space.decode(x))

    one, large = decoding(tiles, 32), decoding(tiles, 128)
    pictures = 3 * (128 * 4) ** 2 * 4
    assert large < one + 3 * pictures
    assert decoding(whole, 128) > 8 * large


def test_encoding_memory_is_that_of_a_tile() -> None:
    autoencoder = on_meta(KL(4, 16, (1, 2, 2), 1))
    tiles, whole = Latent(autoencoder, tile=128), Latent(autoencoder)

    def encoding(space: Latent) -> int:
        image = torch.empty(1, 3, 512, 512, device="meta")
        with torch.no_grad():
            return peak_bytes(lambda: space.encode(image))

    assert encoding(whole) > 8 * encoding(tiles)
