"""Autoencoders: each term of the loss does its work, and a small one is really trained, resumed and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.autoencoders.kl import KL
from sfumato.autoencoders.tiny import Tiny
from sfumato.autoencoders.vq import VQ
from sfumato.checkpoints.load import load
from sfumato.conditioners.nothing import Nothing
from sfumato.core.alone import Coder
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.data.item import Batch, Item, collate
from sfumato.generation.generate import generate
from sfumato.metrics.reconstruction import psnr
from sfumato.model import Model
from sfumato.networks.perceptual import Perceptual
from sfumato.networks.vgg16 import VGG16
from sfumato.spaces.pixel import Pixel
from sfumato.training.ema import Average
from sfumato.training.objectives.autoencoding import Autoencoding, balance, hinge, vanilla
from sfumato.training.optimizers import AdamW
from sfumato.training.run_file import Run
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.trainer import Trainer

PLAIN: dict[str, Any] = {"perceptual": 0.0, "adversarial": 0.0, "measured": 64}
GAME: dict[str, Any] = {"perceptual": 0.0, "layers": 1, "width": 8, "measured": 8}


class Discs:
    """Discs of any colour, place and size on grounds of any colour."""

    def __init__(self, count: int = 256, side: int = 16, seed: int = 0) -> None:
        noise = Noise(torch.arange(count) + seed)
        u = noise.uniform((count, 9), "disc").float()
        place = torch.arange(side) + 0.5
        centre, radius = side * (0.25 + 0.5 * u[:, :2]), side * (0.15 + 0.25 * u[:, 2])
        far = (
            (place[None, :, None] - centre[:, 0, None, None]) ** 2
            + (place[None, None, :] - centre[:, 1, None, None]) ** 2
        ).sqrt()
        inside = (radius[:, None, None] - far + 0.5).clamp(0, 1)[:, None]
        disc, ground = (2 * u[:, i : i + 3, None, None] - 1 for i in (3, 6))
        self.images = inside * disc + (1 - inside) * ground

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, seed: int) -> Item:
        return Item(self.images[index], {})

    def __getitem__(self, index: int) -> Item:
        return self.load(index, 0)

    def fingerprint(self) -> str:
        return f"discs {self.images.sum().item()}"


def model(kind: type[nn.Module] = KL, seed: int = 0, **settings: Any) -> Model:
    torch.manual_seed(seed)
    sizes = {"channels": 4, "width": 16, "multipliers": (1, 2), "blocks": 1, "mid_attention": False}
    return Model(Coder(kind(**{**sizes, **settings})), Nothing(), Pixel(multiple=2))


def batch(count: int, side: int = 16) -> Batch:
    return collate([Discs(count, side)[i] for i in range(count)])


def gradients(made: Model, objective: Autoencoding, value: Tensor) -> dict[str, Tensor | None]:
    named = dict(objective.parameters(made))
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found, strict=True))


# The loss ---------------------------------------------------------------------------------------------------


def test_hinge_and_vanilla_in_closed_form() -> None:
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[-2.0, 0.0], [-1.0, 3.0]])
    # ½ (mean(0, ½) + mean(0, 1)), ½ (mean(2, 0) + mean(0, 4))
    torch.testing.assert_close(hinge(real, fake), torch.tensor([0.375, 1.5]))
    torch.testing.assert_close(vanilla(torch.zeros(1, 4), torch.zeros(1, 4)), torch.log(torch.tensor([2.0])))
    assert vanilla(torch.full((1, 1), 30.0), torch.full((1, 1), -30.0)).item() < 1e-9


def test_the_adaptive_weight_by_hand() -> None:
    theta = torch.tensor([3.0, 4.0], requires_grad=True)
    nll, fooled = 2 * theta.sum(), (theta * torch.tensor([0.3, 0.4])).sum()
    found = balance(nll, fooled, theta)
    assert found.item() == pytest.approx(8**0.5 / (0.5 + 1e-4), rel=1e-6)
    assert not found.requires_grad
    assert balance(1e9 * nll, fooled, theta).item() == 1e4
    assert balance(nll, 0 * fooled, theta).item() == pytest.approx(1e4)


@pytest.fixture(scope="module")
def distance() -> Perceptual:
    torch.manual_seed(0)
    network = VGG16()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return Perceptual(network)


def test_the_perceptual_term_reaches_every_part_of_the_autoencoder(distance: Perceptual) -> None:
    made, objective = model(), Autoencoding(perceptual=0.7, adversarial=0.0, kl=0.0)
    objective._made["perceptual"] = distance  # type: ignore[attr-defined]
    loss = objective.loss(made, batch(2), Noise([1, 2]))
    alone = Autoencoding(perceptual=0.0, adversarial=0.0, kl=0.0).loss(made, batch(2), Noise([1, 2]))
    difference = loss.value - alone.value
    found = gradients(made, objective, difference.sum())
    # Biases before a normalisation move nothing.
    kernels = [g for g in found.values() if g is not None and g.ndim > 1]
    assert len(kernels) == len([p for _, p in objective.parameters(made) if p.ndim > 1])
    assert all(g.abs().max() > 1e-7 for g in kernels)
    posterior = made.denoiser.network.encode(batch(2).image)  # type: ignore[operator]
    back = made.denoiser.network.decode(posterior.sample(Noise([1, 2])))  # type: ignore[operator]
    torch.testing.assert_close(difference, 0.7 * distance(back, batch(2).image), rtol=1e-4, atol=1e-6)
    # Nothing of the distance itself is trained, saved or averaged.
    assert all(name.startswith("network.") for name in found)
    assert objective.state_dict() == {}


def test_kl_weighs_against_errors_summed_over_pixels() -> None:
    made, image = model(), batch(3).image
    loss = Autoencoding(**{**PLAIN, "kl": 0.25}).loss(made, batch(3), Noise([0, 1, 2]))
    posterior = made.denoiser.network.encode(image)  # type: ignore[operator]
    back = made.denoiser.network.decode(posterior.sample(Noise([0, 1, 2])))  # type: ignore[operator]
    summed = (back - image).abs().flatten(1).sum(1) + 0.25 * posterior.kl()
    torch.testing.assert_close(loss.value, summed / (3 * 16 * 16))
    assert loss.parts["kl"].min() > 0


def test_the_two_players_move_on_their_own_losses_alone() -> None:
    made, objective = model(), Autoencoding(**GAME, start=5, adversarial=0.8)
    before = objective.loss(made, batch(4), Noise(range(4), 4))
    found = gradients(made, objective, before.value.sum())
    assert all(not g.any() for n, g in found.items() if n.startswith("discriminator.") and g is not None)
    assert "adversarial" not in before.parts

    loss = objective.loss(made, batch(4), Noise(range(4), 5))
    autoencoder, discriminator = made.denoiser.network, objective.modules()["discriminator"]
    posterior = autoencoder.encode(batch(4).image)  # type: ignore[operator]
    back = autoencoder.decode(posterior.sample(Noise(range(4), 5)))  # type: ignore[operator]
    nll = (back - batch(4).image).abs().flatten(1).mean(1)
    fooled = -discriminator(back).flatten(1).mean(1)
    own, other = (
        torch.autograd.grad(v.mean(), autoencoder.last_layer, retain_graph=True)[0].norm()  # type: ignore[arg-type]
        for v in (nll, fooled)
    )
    assert other > 0
    weight = 0.8 * own / (other + 1e-4)
    torch.testing.assert_close(loss.parts["adversarial"], weight * fooled.detach())
    generator = (nll + weight * fooled + 1e-6 * posterior.kl() / 768).sum()
    critic = hinge(discriminator(batch(4).image), discriminator(back.detach())).sum()
    torch.testing.assert_close(loss.value.sum(), generator + critic)
    found = gradients(made, objective, loss.value.sum())
    wanted = gradients(made, objective, generator)
    wanted_critic = gradients(made, objective, critic)
    for name, gradient in found.items():
        right = (wanted_critic if name.startswith("discriminator.") else wanted)[name]
        assert gradient is not None
        assert right is not None
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-6)


# Training ---------------------------------------------------------------------------------------------------


def settings(steps: int, every: int = 1000, **more: Any) -> Settings:
    adam = AdamW(2e-3, betas=(0.5, 0.9), clip=None)
    rest: dict[str, Any] = {"batch": 16, "device": "cpu", "optimizer": adam, "ema": (Average(0.9),), **more}
    return Settings(steps=steps, saving=Saving(every=every), **rest)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    tiny = Tiny(channels=8, width=16, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    how = settings(
        250,
        batch=8,
        optimizer=AdamW(5e-3, betas=(0.9, 0.99), decay="linear", clip=None),
        validation=Validating(every=250, items=16, bands=1),
    )
    objective = Autoencoding(**PLAIN, reconstruction="l2")
    Trainer(Model(Coder(tiny), Nothing(), Pixel(multiple=2)), Discs(), objective, how, folder).train()
    return folder


def test_it_beats_the_mean_on_pictures_it_has_not_seen(trained: Path) -> None:
    made, new = load(trained), Discs(64, seed=5000).images
    with torch.no_grad():
        back = made.denoiser.reconstruct(new).clamp(-1, 1)  # type: ignore[operator]
    mean = Discs().images.mean(0, keepdim=True).expand_as(new)
    assert psnr(back, new).mean() > psnr(mean, new).mean() + 2.5
    lines = [json.loads(line) for line in (trained / "losses.jsonl").read_text().splitlines()]
    (bands,) = [line["bands"] for line in lines if line.get("bands")]
    assert bands[0] < 0.2


def test_the_measured_scale_gives_latents_of_unit_variance(trained: Path) -> None:
    """A latent model takes weights and scale from the folder, is saved with them, and trains all but them."""
    run = Run.from_dict(
        {
            "model": {
                "network": {"name": "mlp", "dim": 2},
                "process": "flow",
                "prediction": "flow",
                "time_input": "thousand",
                "space": {"name": "latent", "autoencoder": {"from": str(trained)}},
            },
            "data": {"name": "emoji"},
        }
    )
    made, source = run.build_model(), load(trained)
    assert made.space.scale == source.card["latent"]["scale"]  # type: ignore[attr-defined]
    x = made.space.encode(Discs(128, seed=9000).images, Noise(range(128)))
    assert x.std().item() == pytest.approx(1, abs=0.1)
    for name, tensor in source.denoiser.network.state_dict().items():
        assert torch.equal(tensor, made.space.autoencoder.state_dict()[name])  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in made.space.parameters())  # type: ignore[attr-defined]
    assert made.card["first_stage"] == {"hash": source.card["hash"]}
    again = Model.from_description(made.describe())
    assert again.describe() == made.describe()
    assert "from" not in json.dumps(made.describe())


def test_an_autoencoder_alone_is_refused_where_pictures_are_made(trained: Path) -> None:
    with pytest.raises(InvalidInput, match="train a model on its latents"):
        generate(load(trained))
    bad = {"autoencoder": "kl", "process": "flow"}
    with pytest.raises(InvalidInput, match="an autoencoder has no process"):
        Run.from_dict({"model": bad, "data": {"name": "emoji"}})


@pytest.mark.parametrize("kind", [KL, VQ])
def test_a_decoder_learns_alone_and_latents_stay(kind: type[nn.Module], tmp_path: Path) -> None:
    made, data = model(kind), Discs(64)
    before = {name: tensor.clone() for name, tensor in made.denoiser.network.state_dict().items()}
    objective = Autoencoding(**{**GAME, "start": 0}, learns="decoder")
    Trainer(made, data, objective, settings(3, batch=8), tmp_path).train()
    moved = {
        name for name, tensor in made.denoiser.network.state_dict().items() if tensor.ne(before[name]).any()
    }
    assert moved == {name for name in before if name.startswith(("decoder.", "post_quant_conv."))}


def test_a_decoder_is_shown_latents_with_noise_of_many_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is shown less what was encoded has a mean square of (share · deviation)² / 3."""
    made, data = model(), Discs(256)
    batch, noise = collate([data.load(i, 0) for i in range(256)]), Noise(torch.arange(256))
    shown: list[Tensor] = []
    decode = KL.decode
    monkeypatch.setattr(KL, "decode", lambda self, z: shown.append(z) or decode(self, z))
    for share in (0.0, 0.6):
        Autoencoding(**PLAIN, noised=share).loss(made, batch, noise)
    plain, noisy = shown
    moved = ((noisy - plain) / plain.std()).flatten(1)
    levels = moved.square().mean(1).sqrt()
    assert moved.square().mean().item() == pytest.approx(0.36 / 3, rel=0.15)
    assert levels.min() < 0.05
    assert 0.5 < levels.max() < 0.75
    with pytest.raises(InvalidInput, match="noised"):
        Autoencoding(noised=-0.1)


class Killed(Exception):
    """Stands for a crash without warning."""


@pytest.mark.parametrize("kind", [KL, VQ])
def test_a_resumed_run_is_bit_for_bit_the_other(tmp_path: Path, kind: type[nn.Module]) -> None:
    """Killed while the players play: autoencoder, discriminator, moments, averages and codes return."""
    more = {"codes": 16, "revive_after": 2} if kind is VQ else {}

    def trainer(folder: str, observe: Any = None) -> Trainer:
        objective = Autoencoding(**GAME, start=2)
        made = model(kind, width=8, **more)
        return Trainer(made, Discs(40), objective, settings(6, every=4), tmp_path / folder, observe)

    def crash(event: Any) -> None:
        if event.kind == "step" and event.step == 5:
            raise Killed

    whole = trainer("whole")
    whole.train()
    with pytest.raises(Killed):
        trainer("cut", crash).train()
    again = trainer("cut")
    again.train()
    assert whole._tensors().keys() == {"model", "ema", "optimizer", "objective"}
    for group, tensors in whole._tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, again._tensors()[group][name]), (group, name)
    first = Autoencoding(**GAME, start=2).state_dict()
    assert any(not torch.equal(first[n], t) for n, t in whole.objective.state_dict().items())


def test_revival_brings_the_codes_into_use(tmp_path: Path) -> None:
    usage = []
    for revive_after in (0, 4):
        made = model(VQ, width=8, codes=64, revive_after=revive_after)
        Trainer(made, Discs(), Autoencoding(**PLAIN), settings(40), tmp_path / str(revive_after)).train()
        found = made.denoiser.network.quantize(made.denoiser.network.encode(Discs(64).images).mean)  # type: ignore[operator,union-attr]
        usage.append(found.usage.item())
    assert usage[1] > 2 * usage[0]
    assert usage[1] > 0.5
