"""Denoising: the objective nearly all diffusion models are trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.conditioners.augmented import Augmented
from sfumato.core.bound import step_bound
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.model import Model
from sfumato.training.augment import Augment
from sfumato.training.levels.law import LevelLaw
from sfumato.training.levels.uniform import Uniform as UniformLevels
from sfumato.training.objectives.drafting import draft_error, place_error
from sfumato.training.objectives.objective import Loss, TrainingObjective, told
from sfumato.training.weights.rule import Weight
from sfumato.training.weights.uniform import Uniform as UniformWeight

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Denoising(TrainingObjective):
    """Say the data behind noise: weight(level) · mean((x0_hat - x0)²), with x_t = alpha x0 + sigma eps.

    Noise, score, velocity and flow matching are this with the weight `uniform`, which turns the error of x0
    into that of the network's own output. A model of learned range adds the variational bound of the step,
    its mean held fixed (L_hybrid), or with `bound_alone` is trained with the bound alone (L_vlb).

        L_hybrid = L_simple + bound · steps/1000 · L_t,   L_vlb = steps · L_t,   L_t in bits a dimension

    Ho, Jain & Abbeel 2020, arXiv:2006.11239; Kingma & Gao 2023, "Understanding Diffusion Objectives as the
    ELBO with Simple Data Augmentation", arXiv:2303.00848; Nichol & Dhariwal 2021, "Improved Denoising
    Diffusion Probabilistic Models", arXiv:2102.09672, equation 16 (L_hybrid) and section 3.3 (L_vlb, with the
    levels `importance`).

    Args:
        levels: which noise levels are trained on.
        weight: how they are weighed.
        drop: share of rows whose condition is replaced by the null, for classifier-free guidance (Ho &
            Salimans 2022, arXiv:2207.12598: .1 to .2).
        drop_each: of a model that is told a picture beside x and words: share of rows that lose the picture
            alone, and as many that lose all but the picture, for guidance by each (`image_and_text`), or
            without a picture their draft, of which the network is not to think too highly;
            InstructPix2Pix has .05 of this and .05 of `drop` (Brooks, Holynski & Efros 2022,
            arXiv:2211.09800, section 3.2.1).
        offset_noise: standard deviation of one more number a channel added to the noise, so that the mean
            brightness of a picture is learnt (about .05 to .1); part of the target.
        bound: factor of the variational term, in steps/1000; used with learned range alone.
        bound_alone: train the variational bound in place of the squared error, mean and variance alike; needs
            learned range.
        augment: changes the pictures and tells the network how; needs the conditioner `augmented`.
        draft: factor of the squared error of the draft, of a model that is told by `text_draft`. The draft
            learns by it alone, and the network takes it as it is.
        places: factor of the error of words that say where their things stand, as `drafting` teaches them:
            what is taught once is forgotten while the network learns. Needs text_draft or text_small.
        conditioner: whether the conditioner learns with the network. One that was trained before (its drafts,
            the places of its words) is kept as it is by false, and each step is cheaper.

    Raises:
        InvalidInput: shares or weights that are none, or lessons for a conditioner that does not learn.
    """

    levels: LevelLaw = field(default_factory=UniformLevels)
    weight: Weight = field(default_factory=UniformWeight)
    drop: float = 0.1
    drop_each: float = 0.0
    offset_noise: float = 0.0
    bound: float = 1.0
    bound_alone: bool = False
    augment: Augment | None = None
    draft: float = 0.0
    places: float = 0.0
    conditioner: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise InvalidInput(f"{self.drop} is no share", where="denoising.drop", do="give 0 to 1")
        for name in ("draft", "places"):
            if (factor := getattr(self, name)) < 0:
                raise InvalidInput(f"{factor} is no weight", where=f"denoising.{name}", do="give 0 or more")
        if not self.conditioner and (self.draft or self.places):
            raise InvalidInput(
                "drafts and places are lessons of a conditioner that learns",
                where="denoising.conditioner",
                do="leave out draft and places, or this",
            )
        if not 0 <= self.drop_each <= (1 - self.drop) / 2:
            what = f"{self.drop_each} twice and {self.drop} are no shares of one whole"
            raise InvalidInput(what, where="denoising.drop_each")

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, C, H, W) with batch.inputs, one seed of `noise` a row."""
        image, count = batch.image.to(model.device), len(batch.image)
        with torch.set_grad_enabled(self.conditioner and torch.is_grad_enabled()):
            condition = told(model, batch)
        drafted = condition
        if self.draft and condition.draft is not None:
            condition = replace(condition, draft=condition.draft.detach())
        condition = self.dropped(model, condition, noise)
        if self.augment is not None:
            if condition.channels is not None or condition.draft is not None:
                raise InvalidInput(
                    "what is told place by place would not be turned and moved with the pictures",
                    where="denoising.augment",
                    do="leave it out, and let the data crop and flip",
                )
            image, labels = self.augment(image, noise)
            condition = _augmented(model).told(condition, labels)
        x = model.space.encode(image, noise)
        eps = noise.randn_like(x)
        if self.offset_noise:
            offset = noise.randn((count, x.shape[1], *[1] * (x.ndim - 2)), "offset noise")
            eps = eps + self.offset_noise * offset.to(x)
        levels = self.levels(model.process, count, noise)
        error, bits = self._errors(model, x, condition, levels.t, eps)
        parts = {}
        if bits is not None:
            parts["bits"] = bits.detach()
            if not self.bound_alone:
                error = error + self.bound * model.process.steps / 1000 * bits
        parts["error"] = error.detach()
        value = levels.weight.to(error) * error
        if self.draft:
            error = draft_error(drafted, x.detach())
            parts["draft"] = error.detach()
            value = value + self.draft * error
        if self.places:
            error = place_error(model, drafted, batch)
            parts["places"] = error.detach()
            value = value + self.places * error
        return Loss(value, levels.t, parts)

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that asks for gradients, the space included, and the conditioner where it learns."""
        for prefix, part in model.modules().items():
            if prefix == "conditioner" and not self.conditioner:
                continue
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter

    def errors(self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor) -> Tensor:
        return self._errors(model, x, condition, t, eps)[0]

    def observe(self, model: Model, t: Tensor, errors: Tensor) -> None:
        self.levels.observe(model.process, t, errors)

    def state_dict(self) -> dict[str, Tensor]:
        return self.levels.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.levels.load_state_dict(dict(state))

    def _errors(
        self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What is minimised, but for the bound beside the squared error; and that, in bits a dimension."""
        at = model.process(t).like(x)
        denoised = model.denoiser(at.alpha * x + at.sigma * eps, at, condition)
        if self.bound_alone:
            if denoised.variance is None:
                raise InvalidInput(
                    "the bound alone trains no model without a variance",
                    where="denoising.bound_alone",
                    do="set model.learned_range",
                )
            bits = step_bound(model.process, t, x, denoised.x0, denoised.variance)
            return model.process.steps * bits, bits
        weight = self.weight.at(model.process, t, model.denoiser.prediction).to(x)
        error = weight * ((denoised.x0 - x) ** 2).flatten(1).mean(1)
        if denoised.variance is None:
            return error, None
        return error, step_bound(model.process, t, x, denoised.x0.detach(), denoised.variance)

    def dropped(self, model: Model, condition: Condition, noise: Noise) -> Condition:
        """The condition (B rows), a share of them null, and shares of them null in part."""
        if not (self.drop or self.drop_each) or not len(condition):
            return condition
        u = noise.uniform((len(noise), 1), "condition dropout")[:, 0]
        if bool((u >= self.drop + 2 * self.drop_each).all()):
            return condition
        with torch.set_grad_enabled(self.conditioner and torch.is_grad_enabled()):
            null = model.conditioner.null(condition)
        if self.drop_each:
            slot = "draft" if condition.channels is None else "channels"
            if getattr(condition, slot) is None:
                raise InvalidInput("this model is told no picture beside x", where="denoising.drop_each")
            first, last = self.drop + self.drop_each, self.drop + 2 * self.drop_each
            wordless: Condition = replace(null, **{slot: getattr(condition, slot)})
            blind: Condition = replace(condition, **{slot: getattr(null, slot)})
            condition = condition.where(u >= first, blind).where((u < first) | (u >= last), wordless)
        return condition.where(u >= self.drop, null)


def _augmented(model: Model) -> Augmented:
    if not isinstance(model.conditioner, Augmented):
        raise InvalidInput(
            "the model cannot be told how a picture was augmented, and would learn to make such pictures",
            where="denoising.augment",
            do="make model.conditioner {name: augmented, conditioner: ...}, the network 9 classes longer",
        )
    return model.conditioner
