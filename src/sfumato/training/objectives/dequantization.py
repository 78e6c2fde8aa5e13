"""Variational dequantisation: learning where in its bin a byte would lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.core.bound import density_bound
from sfumato.core.condition import Condition
from sfumato.core.dequantize import Dequantized, Variational, bits_of_bytes, to_levels
from sfumato.core.noise import Noise
from sfumato.model import Model
from sfumato.training.levels.likelihood import Likelihood
from sfumato.training.objectives.objective import Loss, TrainingObjective, told

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(frozen=True)
class Dequantization(TrainingObjective):
    """Train a dequantizer q(u | bytes) under a model that is left as it is, by a bound on bits a dimension.

        (bound on -log p((byte + u) / 128 - 1) + log q(u | bytes)) / (D log 2) + 7

    The bound on -log p is `density_bound` at one random level, which is differentiable in u where the exact
    likelihood is too dear. What is trained is `dequantizer`, to be handed to the metric `likelihood`; the
    model gets no gradients. The trainer keeps it in the run's checkpoints.

    Song, Durkan, Murray & Ermon 2021, arXiv:2101.09258, section 5.2; Ho et al. 2019, arXiv:1902.00275.

    Args:
        channels: of the pictures.
        width: channels of the dequantizer's network.
        depth: its layers.
        stratified: look at one level in each of B parts, as the levels `likelihood` do.
        seed: of the dequantizer's first weights.
    """

    channels: int = 3
    width: int = 64
    depth: int = 2
    stratified: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            object.__setattr__(self, "_dequantizer", Variational(self.channels, self.width, self.depth))

    @property
    def dequantizer(self) -> Variational:
        """What is trained."""
        return self._dequantizer  # type: ignore[attr-defined]

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss of pictures batch.image (B, C, H, W) with batch.inputs, one seed of `noise` a row.

        Its parts are the "error", the bound in bits a dimension, and "entropy", what -log q takes off it.
        """
        for part in model.modules().values():
            part.eval().requires_grad_(False)
        image = batch.image.to(model.device)
        condition = told(model, batch)
        made = self.dequantizer(to_levels(image), noise)
        x = model.space.encode(made.x)
        levels = Likelihood(self.stratified)(model.process, len(x), noise)
        bits = self._bits(model, x, made, condition, levels.t, levels.weight, noise.randn_like(x))
        entropy = -made.log_q.detach() / (x[0].numel() * math.log(2))
        return Loss(bits, levels.t, {"error": bits.detach(), "entropy": entropy})

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """The dequantizer's alone."""
        for name, parameter in self.dequantizer.named_parameters():
            yield f"dequantizer.{name}", parameter

    def modules(self) -> dict[str, nn.Module]:
        return {"dequantizer": self.dequantizer}

    def errors(self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor) -> Tensor:
        """The bound (B,) of clean x at times t (B,) with noise eps, and the same place in bins each time."""
        image = model.space.decode(x)
        made = self.dequantizer(to_levels(image), Noise(torch.arange(len(x))))
        return self._bits(model, model.space.encode(made.x), made, condition, t, torch.ones_like(t), eps)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"dequantizer.{name}": tensor for name, tensor in self.dequantizer.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.dequantizer.load_state_dict(
            {name.removeprefix("dequantizer."): tensor for name, tensor in state.items()}
        )

    def _bits(
        self,
        model: Model,
        x: Tensor,
        made: Dequantized,
        condition: Condition,
        t: Tensor,
        weight: Tensor,
        eps: Tensor,
    ) -> Tensor:
        bound = density_bound(model.denoiser, model.process, x, condition, t, weight, eps)
        return bound + bits_of_bytes(-made.log_q, x[0].numel())
