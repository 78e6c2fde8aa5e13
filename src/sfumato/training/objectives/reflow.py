"""Reflow: training on the pairs of noise and data that a model itself makes, which straightens its walks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.noise import Noise
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import Sampler, sample
from sfumato.core.times import Times
from sfumato.model import Model
from sfumato.samplers.heun import Heun
from sfumato.times.uniform import Uniform as UniformTimes
from sfumato.training.levels.law import LevelLaw
from sfumato.training.levels.uniform import Uniform as UniformLevels
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.objectives.objective import Loss, TrainingObjective, told
from sfumato.training.weights.rule import Weight
from sfumato.training.weights.uniform import Uniform as UniformWeight

if TYPE_CHECKING:
    from sfumato.data.item import Batch


@dataclass(eq=False)
class Reflow(TrainingObjective):
    """Rectify a flow: learn the straight lines between noise and what the model itself makes of that noise.

        x_t = alpha x0 + sigma eps,   x0 = what the walk of the model as it was makes of eps

    The lines between noise and data cross and a model walks their mean, in curves; those between the ends of
    walks do not, so that few steps do, or one. Train a trained model with it (`start` in a run file), anew
    for each time it is rectified; of the data only the shape and the inputs are used. The teacher is a frozen
    copy of the model as training begins and goes with the checkpoints, so that a resumed run has the very
    same. Each training step costs a walk of the teacher, `steps` times one or two evaluations (Heun's). The
    validation loss, of data and noise that are no pairs, is expected to rise.

    Liu, Gong & Liu 2022, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified
    Flow", arXiv:2209.03003, algorithm 1.

    Args:
        sampler: the teacher's.
        times: where its steps lie.
        steps: of its walk.
        levels: which noise levels are trained on.
        weight: how they are weighed.
        drop: share of rows whose condition is replaced by the null, the teacher's too.
    """

    sampler: Sampler = field(default_factory=Heun)
    times: Times = field(default_factory=UniformTimes)
    steps: int = 16
    levels: LevelLaw = field(default_factory=UniformLevels)
    weight: Weight = field(default_factory=UniformWeight)
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidInput(f"{self.steps} steps make no walk", where="reflow.steps", do="give at least 1")
        self._denoising = Denoising(self.levels, self.weight, self.drop)
        self._teacher: NetworkDenoiser | None = None
        self._saved: dict[str, Tensor] = {}

    def loss(self, model: Model, batch: Batch, noise: Noise) -> Loss:
        """Loss on as many pairs as there are pictures in batch.image, told what batch.inputs say."""
        encoded = model.space.encode(batch.image.to(model.device), noise)
        condition = told(model, batch)
        condition = self._denoising.dropped(model, condition, noise)
        x, eps = self.pairs(model, encoded, condition, noise)
        levels = self.levels(model.process, len(x), noise)
        error = self.errors(model, x, condition, levels.t, eps)
        return Loss(levels.weight.to(error) * error, levels.t, {"error": error.detach()})

    @torch.no_grad()
    def pairs(self, model: Model, like: Tensor, condition: Condition, noise: Noise) -> tuple[Tensor, Tensor]:
        """Data and the noise they are made of, both shaped as `like` (B, C, ..), one seed a row."""
        process = model.process
        # In full precision whatever the training's: a teacher's error is learnt like the truth.
        with torch.autocast(like.device.type, enabled=False):
            held = condition.map(lambda value: value.detach())
            reverse = ReverseProcess(self._frozen(model), process, held, noise, turn="reflow ")
            start = reverse.prior(tuple(like.shape)).to(like)
            end = sample(self.sampler, reverse, start, self.times(process, self.steps))
        return end, start / process.prior_std

    def parameters(self, model: Model) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that asks for gradients, conditioner and space included."""
        return self._denoising.parameters(model)

    def errors(self, model: Model, x: Tensor, condition: Condition, t: Tensor, eps: Tensor) -> Tensor:
        return self._denoising.errors(model, x, condition, t, eps)

    def observe(self, model: Model, t: Tensor, errors: Tensor) -> None:
        self._denoising.observe(model, t, errors)

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights, and the memory of the levels."""
        teacher = self._saved if self._teacher is None else self._teacher.state_dict()
        levels = self._denoising.state_dict()
        return {f"teacher.{name}": tensor for name, tensor in teacher.items()} | {
            f"levels.{name}": tensor for name, tensor in levels.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        groups: dict[str, dict[str, Tensor]] = {"teacher": {}, "levels": {}}
        for name, tensor in state.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor
        self._teacher, self._saved = None, groups["teacher"]
        if groups["levels"]:
            self._denoising.load_state_dict(groups["levels"])

    def _frozen(self, model: Model) -> NetworkDenoiser:
        if self._teacher is None:
            self._teacher = copy.deepcopy(model.denoiser).eval().requires_grad_(False)
            if self._saved:
                self._teacher.load_state_dict(self._saved)
                self._saved = {}
        return self._teacher


@torch.no_grad()
def straightness(reverse: ReverseProcess, start: Tensor, sampler: Sampler, times: Tensor) -> Tensor:
    """How far walks are from straight lines walked evenly: 0 for those, which one step of Euler's walks.

        S = mean over the walk's steps of |(x_end - x_start) - (x_s - x_t) / (s - t) · (t_end - t_start)|²

    summed over dimensions; Liu, Gong & Liu 2022, arXiv:2209.03003, section 2.2, with steps for derivatives.

    Args:
        reverse: what is walked.
        start: x (B, ..) at times[0].
        sampler: how to walk.
        times: decreasing, (N + 1,).

    Returns:
        S of each row, (B,).
    """
    places = [start]
    sample(sampler, reverse, start, times, lambda event: places.append(event.x))
    whole, length = places[-1] - start, float(times[-1] - times[0])
    total = torch.zeros(len(start), dtype=start.dtype, device=start.device)
    for (x_t, x_s), (t, s) in zip(pairwise(places), pairwise(times.tolist()), strict=True):
        gap = whole - (x_s - x_t) * (length / (s - t))
        total = total + (gap**2).flatten(1).sum(1) * ((s - t) / length)
    return total
