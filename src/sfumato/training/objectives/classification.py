"""Classification behind noise: what a classifier that guides is trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sfumato.core.classifier import NoisyClassifier, log_probability
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.model import Model
from sfumato.training.levels.law import LevelLaw
from sfumato.training.levels.uniform import Uniform
from sfumato.training.objectives.objective import Loss, TrainingObjective

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Classification(TrainingObjective):
    """Say the class behind noise: -log p(y | x_t), with x_t = alpha x0 + sigma eps.

    Trains a model that `classifies`. A row of which the data say no class adds nothing.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, section 4.

    Args:
        levels: which noise levels are trained on.
    """

    levels: LevelLaw = field(default_factory=Uniform)

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, C, H, W) with batch.inputs, one seed of `noise` a row.

        Its parts are the "error", -log p, and the "accuracy", 1 where the likeliest class is the true one.
        """
        name = _classifier(model).classifies
        if batch.inputs.get(name) is None:
            raise InvalidInput("the data say no class", where=name, do="name the input they do say")
        x = model.space.encode(batch.image.to(model.device), noise)
        condition = model.conditioner(len(x), **{name: batch.inputs[name]}).to(x.device)
        levels = self.levels(model.process, len(x), noise)
        logits, classes = self._answer(model, x, condition, levels.t, noise.randn_like(x))
        error = -log_probability(logits, classes)
        right = classes.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        parts = {"error": error.detach(), "accuracy": right.to(error)}
        return Loss(levels.weight.to(error) * error, levels.t, parts)

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that asks for gradients, conditioner and space included."""
        for prefix, part in model.modules().items():
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter

    def errors(self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor) -> Tensor:
        """-log p (B,) of clean x (B, C, ..) at times t (B,) with noise eps: validation."""
        return -log_probability(*self._answer(model, x, condition, t, eps))

    def observe(self, model: Model, t: Tensor, errors: Tensor) -> None:
        self.levels.observe(model.process, t, errors)

    def state_dict(self) -> dict[str, Tensor]:
        return self.levels.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.levels.load_state_dict(dict(state))

    def _answer(
        self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits and one-hot classes, both (B, classes)."""
        at = model.process(t).like(x)
        assert condition.vector is not None
        return _classifier(model).logits(at.alpha * x + at.sigma * eps, at), condition.vector


def _classifier(model: Model) -> NoisyClassifier:
    if not isinstance(model.denoiser, NoisyClassifier):
        raise InvalidInput(
            "this model says data, not classes", where="model", do="give classifies in place of prediction"
        )
    return model.denoiser
