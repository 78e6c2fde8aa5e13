"""Autoencoding: what the autoencoders of latent models are trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoders.discriminator import PatchGAN
from sfumato.autoencoders.vq import VQ
from sfumato.core.alone import Coder
from sfumato.core.errors import InvalidInput, SfumatoError
from sfumato.core.noise import Noise, derive
from sfumato.model import Model
from sfumato.networks.perceptual import Perceptual
from sfumato.spaces.latent import measure_scale
from sfumato.training.objectives.objective import Loss, TrainingObjective

if TYPE_CHECKING:
    from sfumato.data.item import Batch, Dataset

_MOST = 1e4
_DECODER = ("decoder.", "post_quant_conv.")


@dataclass(frozen=True)
class Autoencoding(TrainingObjective):
    """Give pictures back: to the pixel, to the eye, with latents of bounded information, like real ones.

        nll = mean |x - x̂| + perceptual · d(x, x̂)
        loss = nll + kl · KL / D + codebook · loss of the codes + w · (-mean D(x̂)) + loss of D

    with D the numbers of a picture, so that `kl` weighs against errors summed over pixels, as published.
    From step `start` on a discriminator tells pictures from reconstructions, and

        w = adversarial · clamp(‖∂nll/∂θ‖ / (‖∂(-mean D(x̂))/∂θ‖ + 1e-4), 0, 1e4),   θ the last layer.

    Both players are moved in the same step by the run's one optimizer, each by its own loss alone: the
    autoencoder's passes through a discriminator held fixed, the other sees reconstructions detached.
    As Adam's steps do not depend on the scale of a loss, this is the published pair of optimizers of equal
    settings, but that the discriminator is shown what the autoencoder made before its step and not after; one
    pass a step is saved, and one optimizer is what a checkpoint holds. Clipping would couple the players: set
    optimizer.clip null, betas [0.5, 0.9].

    When training ends, 1 / standard deviation of latents is measured on the training data and stored in the
    model's card as latent.scale.

    Esser, Rombach & Ommer 2021, "Taming Transformers", arXiv:2012.09841, equations 4 to 7; Rombach et al.
    2022, arXiv:2112.10752, appendix G (kl 1e-6, adversarial .5 from step 50001 there; with codebooks .75 or
    .6).

    Args:
        reconstruction: "l1" or "l2".
        perceptual: weight of the distance to the eye, of networks/perceptual; 0 for none.
        kl: weight of the KL divergence of the posterior from the normal; where there is one.
        codebook: weight of the codebook's loss; where there is one.
        adversarial: weight of the discriminator, before it is balanced; 0 for none.
        game: "hinge" or "vanilla" (softplus).
        start: the step, counted from 0, at which the discriminator comes in and begins to learn.
        layers: of the discriminator.
        width: of the discriminator.
        trunk: a file of VGG16 weights for the distance to the eye; None for those of its package.
        heads: a file of LPIPS' weights, of that trunk.
        measured: pictures that the scale of latents is measured on; 0 for none.
        learns: "all" of it, or the "decoder" alone, so that models of the latents stay as good as they are
            (from trained weights, `start` of the run file; as Stable Diffusion's "ft" decoders are made).
        noised: the decoder is shown latents with noise on them, σ uniform from 0 to this share of their
            standard deviation, so that it mends what a network's latents lack; 0 for none. Zheng et al. 2025,
            "Diffusion Transformers with Representation Autoencoders", arXiv:2510.11690, section 4.3.
        seed: of the discriminator's first weights.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    perceptual: float = 1.0
    kl: float = 1e-6
    codebook: float = 1.0
    adversarial: float = 0.5
    game: Literal["hinge", "vanilla"] = "hinge"
    start: int = 50001
    layers: int = 3
    width: int = 64
    trunk: str | None = None
    heads: str | None = None
    measured: int = 256
    learns: Literal["all", "decoder"] = "all"
    noised: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        weights = (self.perceptual, self.kl, self.codebook, self.adversarial, self.noised)
        if min(*weights, self.start, self.measured) < 0:
            raise InvalidInput("weights, noised, start and measured are 0 or more", where="autoencoding")
        object.__setattr__(self, "_made", {})

    def modules(self) -> dict[str, nn.Module]:
        """The discriminator and the perceptual distance, those of them that have a weight."""
        made: dict[str, nn.Module] = self._made  # type: ignore[attr-defined]
        if self.adversarial and "discriminator" not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "discriminator"))
                made["discriminator"] = PatchGAN(width=self.width, layers=self.layers)
        if self.perceptual and "perceptual" not in made:
            made["perceptual"] = Perceptual.pretrained(self.trunk, self.heads)
        return made

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, 3, H, W), one seed of `noise` a row, whose step is the run's.

        Its parts are the "error" (pixels and eye), what else has a weight ("perceptual", "kl", "codebook",
        "adversarial", "discriminator"), and of codebooks the share "usage".
        """
        autoencoder = _autoencoder(model)
        image = model.space.encode(batch.image.to(model.device), noise)
        with torch.set_grad_enabled(self.learns == "all" and torch.is_grad_enabled()):
            posterior = autoencoder.encode(image)
        parts: dict[str, Tensor] = {}
        if isinstance(autoencoder, VQ):
            found = autoencoder.quantize(posterior.mean)
            made = autoencoder.decode(self._noised(found.z, noise), quantize=False)
            parts["codebook"] = self.codebook * found.loss.expand(len(image))
        else:
            made = autoencoder.decode(self._noised(posterior.sample(noise), noise))
            parts["kl"] = self.kl * posterior.kl() / image[0].numel()
        nll, parts["perceptual"] = self._nll(image, made)
        value = nll + sum(parts[name] for name in ("codebook", "kl") if name in parts)
        if self.adversarial:
            value = value + self._played(autoencoder, image, made, nll, noise.step, parts)
        if isinstance(autoencoder, VQ):
            parts["usage"] = found.usage.expand(len(image))
        parts = {name: part.detach() for name, part in {**parts, "error": nll}.items()}
        return Loss(value, torch.zeros(len(image)), parts)

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """The autoencoder's and the discriminator's."""
        modules: dict[str, nn.Module] = dict(model.modules())
        if self.adversarial:
            modules["discriminator"] = self.modules()["discriminator"]
        for prefix, part in modules.items():
            for name, parameter in part.named_parameters():
                if self.learns == "decoder" and prefix != "discriminator" and not name.startswith(_DECODER):
                    # What is not learnt has no gradients, which a distributed step would wait for.
                    parameter.requires_grad_(False)
                elif parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter

    def timeless(self, model: Model, batch: Batch) -> Tensor:
        """Pixels and eye (B,) of pictures given back from mean latents."""
        assert isinstance(model.denoiser, Coder)
        image = batch.image.to(model.device)
        return self._nll(image, model.denoiser.reconstruct(image))[0]

    def finish(self, model: Model, data: Dataset) -> dict[str, Any]:
        """The measured scale of latents, for the card."""
        if not self.measured:
            return {}
        autoencoder, count = _autoencoder(model), min(self.measured, len(data))

        def pictures() -> Iterator[Tensor]:
            # One by one, as those of a data set in buckets have many sizes.
            for number in range(count):
                with suppress(SfumatoError, OSError):
                    image = data.load(number * len(data) // count, 0).image[None].to(model.device)
                    yield model.space.encode(image)

        return {"latent": {"scale": measure_scale(autoencoder, pictures(), self.seed), "pictures": count}}

    def state_dict(self) -> dict[str, Tensor]:
        if not self.adversarial:
            return {}
        state = self.modules()["discriminator"].state_dict()
        return {f"discriminator.{name}": tensor for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.adversarial:
            bare = {name.removeprefix("discriminator."): tensor for name, tensor in state.items()}
            self.modules()["discriminator"].load_state_dict(bare)

    def _noised(self, z: Tensor, noise: Noise) -> Tensor:
        """Latents with noise of a level of each one's own."""
        if not self.noised:
            return z
        sigma = self.noised * z.detach().std() * noise.uniform((len(z),), "latent level").to(z)
        return z + sigma.view(-1, 1, 1, 1) * noise.randn_like(z, "latents")

    def _nll(self, image: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and eye together, and the eye alone, both (B,)."""
        difference = made.float() - image
        error = (difference.abs() if self.reconstruction == "l1" else difference.square()).flatten(1).mean(1)
        if not self.perceptual:
            return error, torch.zeros_like(error)
        seen = self.perceptual * self.modules()["perceptual"](made, image)
        return error + seen, seen

    def _played(
        self,
        autoencoder: Any,
        image: Tensor,
        made: Tensor,
        nll: Tensor,
        step: int,
        parts: dict[str, Tensor],
    ) -> Tensor:
        """Both players' losses (B,)."""
        discriminator = self.modules()["discriminator"]
        assert isinstance(discriminator, PatchGAN)
        if step < self.start:
            # Weights without a gradient would keep a distributed step waiting for them.
            return sum(p.sum() for p in discriminator.parameters()) * image.new_zeros(len(image))
        fooled = -discriminator.frozen(made).flatten(1).mean(1)
        weight = self.adversarial * balance(nll.mean(), fooled.mean(), autoencoder.last_layer)
        real, fake = discriminator(image), discriminator(made.detach())
        parts["adversarial"] = weight * fooled
        parts["discriminator"] = GAMES[self.game](real, fake)
        return parts["adversarial"] + parts["discriminator"]


def balance(nll: Tensor, fooled: Tensor, last_layer: Tensor) -> Tensor:
    """clamp(‖∂nll/∂θ‖ / (‖∂fooled/∂θ‖ + 1e-4), 0, 1e4) at the last layer's weights θ; no gradient flows."""
    own, other = (torch.autograd.grad(each, last_layer, retain_graph=True)[0] for each in (nll, fooled))
    return (own.norm() / (other.norm() + 1e-4)).clamp(0, _MOST).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """½ (mean relu(1 - D(x)) + mean relu(1 + D(x̂))), a row of logits each (B,)."""
    return (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1)) / 2


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """½ (mean softplus(-D(x)) + mean softplus(D(x̂))), a row of logits each (B,)."""
    return (F.softplus(-real).flatten(1).mean(1) + F.softplus(fake).flatten(1).mean(1)) / 2


GAMES = {"hinge": hinge, "vanilla": vanilla}
"""What the discriminator minimises."""


def _autoencoder(model: Model) -> Any:
    if not isinstance(model.denoiser, Coder):
        raise InvalidInput(
            "this model is no autoencoder",
            where="model",
            do="give model: {autoencoder: ...} in place of network",
        )
    return model.denoiser.network
