"""The VQ autoencoder: published sizes, parity with diffusers, and the codebook's closed forms."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import VQModel
from network_recipes import drawn, normal, randomised
from torch import Tensor

from sfumato.autoencoders.vq import PUBLISHED, VQ, Codebook, Quantized
from sfumato.checkpoints.vae_keys import from_diffusers
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.registry import build, describe

COUNTS = {
    "f4": 55_322_782,
    "f4_noattn": 53_219_486,
    "f8": 67_717_295,
    "f8_n256": 67_652_783,
    "f16": 69_593_371,
}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(PUBLISHED)
    with torch.device("meta"):
        autoencoder = VQ.published(name)
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == COUNTS[name]
    assert autoencoder.state_dict().keys() >= {"quantize.embedding.weight", "quant_conv.bias"}
    assert not list(autoencoder.buffers())


def test_an_unknown_published_name() -> None:
    with pytest.raises(NotFound, match="f8_n256"):
        VQ.published("f8_n265")


@pytest.mark.parametrize("attention, mid", [((), False), ((2,), True)])
def test_parity_with_diffusers(attention: tuple[int, ...], mid: bool) -> None:
    kinds = [2**level in attention for level in range(2)]
    reference = VQModel(
        down_block_types=["AttnDownEncoderBlock2D" if k else "DownEncoderBlock2D" for k in kinds],
        up_block_types=["AttnUpDecoderBlock2D" if k else "UpDecoderBlock2D" for k in reversed(kinds)],
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=23,
        mid_block_add_attention=mid,
    ).eval()
    for module in reference.modules():
        if hasattr(module, "to_q"):
            module.heads = 1
    theirs = drawn(reference.state_dict(), 3)
    reference.load_state_dict(theirs)
    ours = VQ(23, 4, 32, (1, 2), 1, attention, mid, legacy=True).eval()
    ours.load_state_dict(from_diffusers(theirs))
    image, z = normal(2, 3, 16, 24).clamp(-1, 1), normal(2, 4, 8, 12, seed=1)
    with torch.no_grad():
        latents = reference.encode(image).latents
        torch.testing.assert_close(ours.encode(image).mean, latents, rtol=1e-5, atol=1e-5)
        expected = reference.decode(z)
        torch.testing.assert_close(ours.decode(z), expected.sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.quantize(z).loss, expected.commit_loss, rtol=1e-5, atol=0)
        plain = reference.decode(z, force_not_quantize=True).sample
        torch.testing.assert_close(ours.decode(z, quantize=False), plain, rtol=1e-5, atol=1e-5)
        codes = reference.quantize(z)[2][2].view(2, 8, 12)
        assert torch.equal(ours.quantize(z).indices, codes)
        torch.testing.assert_close(ours.decode_codes(codes), expected.sample, rtol=1e-5, atol=1e-5)
    assert latents.std() > 0.1
    assert len(codes.unique()) > 10


def codebook(codes: int = 7, channels: int = 3, revive_after: int = 0, legacy: bool = False) -> Codebook:
    book = Codebook(codes, channels, 0.25, legacy, revive_after)
    book.embedding.weight.data = normal(codes, channels, seed=2)
    return book


def test_the_nearest_code_is_the_nearest_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    book, z = codebook(50).double(), normal(2, 3, 9, 11).double()
    rows = z.permute(0, 2, 3, 1).reshape(-1, 1, 3)
    expected = (rows - book.embedding.weight).square().sum(-1).argmin(1).view(2, 9, 11)
    assert torch.equal(book(z).indices, expected)
    # In chunks of 4 rows each.
    monkeypatch.setattr("sfumato.autoencoders.vq._CHUNK", 200)
    assert torch.equal(book(z).indices, expected)


def test_codes_close_together_and_far_from_the_map_are_told_apart() -> None:
    """As at the start of training: distances of 100 that differ by 1e-7 of it."""
    book = codebook(3, 2)
    book.embedding.weight.data = torch.tensor([[1e-6, 0.0], [-1e-6, 0.0], [0.0, 1e-6]])
    z = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0]])[..., None, None]
    assert book(z).indices.flatten().tolist() == [0, 1, 2]


def test_the_gradient_goes_straight_through() -> None:
    book, z, told = codebook(), normal(2, 3, 4, 5).requires_grad_(), normal(2, 3, 4, 5, seed=4)
    quantized = book(z)
    torch.testing.assert_close(quantized.z, book.look_up(quantized.indices), rtol=0, atol=1e-6)
    by_z, by_codes = torch.autograd.grad(
        (quantized.z * told).sum(), [z, book.embedding.weight], allow_unused=True
    )
    assert torch.equal(by_z, told)
    assert by_codes is None


@pytest.mark.parametrize("legacy", [False, True])
def test_each_side_of_the_loss_is_drawn_to_the_other(legacy: bool) -> None:
    """By hand: commitment .25 on the map's side, or, in the published code, on the codes'."""
    book, z = codebook(4, legacy=legacy), normal(2, 3, 4, 5).requires_grad_()
    quantized = book(z)
    e = book.look_up(quantized.indices).detach()
    count = z.numel()
    torch.testing.assert_close(quantized.loss, 1.25 * (z.detach() - e).square().mean())
    by_z, by_codes = torch.autograd.grad(quantized.loss, [z, book.embedding.weight])
    on_map, on_codes = (1.0, 0.25) if legacy else (0.25, 1.0)
    torch.testing.assert_close(by_z, on_map * 2 * (z.detach() - e) / count)
    pull = (on_codes * 2 * (e - z.detach()) / count).permute(0, 2, 3, 1).reshape(-1, 3)
    expected = torch.zeros_like(by_codes).index_add(0, quantized.indices.flatten(), pull)
    torch.testing.assert_close(by_codes, expected)


def quantized(indices: list[int], codes: int) -> Quantized:
    grid = torch.tensor(indices).view(1, 1, -1)
    return Quantized(torch.zeros(1), grid, torch.zeros(()), codes)


def test_perplexity_and_usage() -> None:
    even, one, uneven = quantized([0, 1, 2, 3], 8), quantized([5] * 6, 8), quantized([0, 0, 0, 1], 8)
    assert even.perplexity.item() == pytest.approx(4)
    assert even.usage.item() == 0.5
    assert one.perplexity.item() == pytest.approx(1)
    assert one.usage.item() == pytest.approx(1 / 8)
    assert uneven.perplexity.item() == pytest.approx(0.75**-0.75 * 0.25**-0.25)


def lonely(revive_after: int) -> tuple[Codebook, Tensor]:
    """One code amid the map, the others out of its reach."""
    book = codebook(6, 2, revive_after)
    book.embedding.weight.data = torch.cat((torch.zeros(1, 2), torch.full((5, 2), 1e3)))
    return book.train(), normal(2, 2, 4, 4)


def test_dead_codes_are_drawn_from_the_map_after_the_steps_said() -> None:
    book, z = lonely(revive_after=3)
    rows = {tuple(row.tolist()) for row in z.permute(0, 2, 3, 1).reshape(-1, 2)}
    for _ in range(3):
        assert book(z).usage.item() == pytest.approx(1 / 6)
    used = set(book(z).indices.unique().tolist())
    codes = [tuple(row.tolist()) for row in book.embedding.weight.detach()]
    assert used >= {1, 2, 3, 4, 5}
    assert codes[0] == (0, 0)
    assert set(codes[1:]) <= rows
    assert len(set(codes)) == 6
    # Now they are used, and stay.
    for _ in range(10):
        book(z)
    assert [tuple(row.tolist()) for row in book.embedding.weight.detach()][1:] == codes[1:]


def test_codes_are_not_revived_unless_it_trains() -> None:
    for prepare in (lambda b: b.eval(), lambda b: b):
        book, z = lonely(revive_after=1)
        prepare(book)
        before = copy.deepcopy(book.state_dict())
        with torch.set_grad_enabled(not book.training):
            for _ in range(5):
                book(z)
        assert all(torch.equal(before[name], tensor) for name, tensor in book.state_dict().items())
    book, z = lonely(revive_after=0)
    for _ in range(5):
        assert book(z).usage.item() == pytest.approx(1 / 6)


def test_more_dead_codes_than_places() -> None:
    book = codebook(100, 2, 1).train()
    book.embedding.weight.data.fill_(1e3)
    z = normal(1, 2, 2, 3)
    for _ in range(4):
        last = book(z)
    assert len(last.indices.unique()) == 6
    assert torch.isfinite(book.embedding.weight).all()


def test_a_run_resumed_revives_the_same() -> None:
    whole, z = lonely(revive_after=3)
    for number in range(6):
        if number == 2:
            resumed = codebook(6, 2, 3).train()
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        whole(z + number)
        if number >= 2:
            resumed(z + number)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_revival_learns_what_its_lack_cannot() -> None:
    """Points of eight clusters, codes all on one side of them: with revival all clusters get a code."""
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)])
    errors = {}
    for revive_after in (0, 5):
        book = codebook(8, 3, revive_after).train()
        book.embedding.weight.data = 3 + 0.1 * normal(8, 3)
        optimiser = torch.optim.SGD(book.parameters(), 0.5)
        for step in range(150):
            points = corners.repeat(4, 1) + 0.05 * normal(32, 3, seed=step)
            optimiser.zero_grad()
            result = book(points.T.reshape(1, 3, 4, 8))
            result.loss.backward()
            optimiser.step()
        errors[revive_after] = result.loss.item() / 1.25
    assert errors[5] < 0.2 < errors[0]


def test_reconstruction_reaches_every_weight_and_the_codes() -> None:
    autoencoder = randomised(VQ(16, 3, 8, (1, 2), 1, (2,)))
    image = normal(2, 3, 8, 8).clamp(-1, 1)
    found = autoencoder.quantize(autoencoder.encode(image).mean)
    loss = (autoencoder.decode(found.z, quantize=False) - image).abs().mean() + found.loss
    loss.backward()
    still = [n for n, q in autoencoder.named_parameters() if q.grad is None or q.grad.abs().max() == 0]
    assert [n for n in still if not n.endswith(".k.bias")] == []


def test_descriptions_come_back() -> None:
    autoencoder = VQ(16, 3, 8, (1, 2), 1, (2,), revive_after=10)
    described = describe(autoencoder)
    assert described["revive_after"] == 10
    again = build("autoencoder", described)
    assert describe(again) == described
    assert again.state_dict().keys() == autoencoder.state_dict().keys()
    assert "quantize.used" in again.state_dict()


def test_settings_that_make_no_codebook() -> None:
    with pytest.raises(InvalidInput, match="codes"):
        VQ(codes=0)
    with pytest.raises(InvalidInput, match="revival"):
        VQ(revive_after=-1)
