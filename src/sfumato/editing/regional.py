"""Regional prompts: parts of a picture that are told prompts of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioners.texts import NAMES
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.edit import Scene, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.region import Region
from sfumato.data.picture import masks
from sfumato.generation.task import conditions


@dataclass(frozen=True)
class Regional:
    """Several prompts in one picture, each in its region; what no region covers is told the picture's own.

        x0 = (1 - Σ_i w_i) x0(prompt) + Σ_i w_i x0(prompts_i),    w_i = (1 - base) r_i / max(1, Σ_j r_j)

    with r_i how much of a place lies in region i: inside of one alone it is that prompt's estimate, where
    regions overlap their mean, and over a feathered edge one goes over into the other. Estimates are guided
    ones, whatever the guidance, of one batched call of all prompts. Regions say where, and the network, which
    sees the whole picture, makes one of it: a base prompt that names the scene helps.

    Bar-Tal, Yariv, Lipman & Dekel 2023, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image
    Generation", arXiv:2302.08113, section 4.2, the average taken in every estimate; of whole conditions
    without regions, guidance `compose`.

    Args:
        prompts: one a region.
        regions: where each holds, in pixels of the picture.
        base: how much of the picture's own prompt stays inside of regions, 0 to 1.

    Raises:
        InvalidInput: other numbers of prompts than of regions, a model that is told no text, a region outside
            the picture.
    """

    prompts: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    base: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or len(self.prompts) != len(self.regions):
            raise InvalidInput(
                f"{len(self.regions)} regions want as many prompts, in a list", where="regional.prompts"
            )
        if not 0 <= self.base <= 1:
            raise InvalidInput(f"{self.base} is not from 0 to 1", where="regional.base")

    def turn(self, scene: Scene) -> Turn:
        """The walk, in which each place is told its own."""
        if not self.regions:
            raise InvalidInput("no regions are given", where="regional.regions")
        name = next((each for each in NAMES if each in scene.model.conditioner.inputs), None)
        if name is None:
            raise InvalidInput("this model is told no prompt", where="regional")
        count = len(scene)
        rest = {key: list(values) for key, values in scene.said.items() if key not in NAMES}
        others = [
            conditions(scene.model, count, {**rest, name: [prompt] * count}, None)[0]
            for prompt in self.prompts
        ]
        return Turn(guidance=_Mixed(others, self.weights(scene.size, (scene.shape[1], scene.shape[2]))))

    def weights(self, size: tuple[int, int], sides: tuple[int, int]) -> Tensor:
        """(1 + prompts, 1, h, w), those of the picture's own prompt first; they sum to 1.

        Args:
            size: (height, width) of the picture in pixels.
            sides: (h, w) of x.
        """
        read = partial(masks, where="regional.regions.mask")
        inside = torch.cat([region.places(size, sides, read) for region in self.regions])
        inside = (1 - self.base) * inside / inside.sum(dim=0, keepdim=True).clamp_min(1)
        return torch.cat((1 - inside.sum(dim=0, keepdim=True), inside))


class _Mixed:
    """Guidance by several conditions, weighed place by place."""

    def __init__(self, others: list[Condition], weights: Tensor) -> None:
        self.others, self.weights = others, weights

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        weights = self.weights

        def mixed(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            # On the meta device, where memory is measured, all must be there.
            told = [condition, *(each.to(x.device) for each in self.others)]
            every = replace(Condition.stack(told), branch=None)
            said = denoiser(torch.cat([x] * len(told)), level, every)

            def mean(values: Tensor) -> Tensor:
                parts = values.reshape(len(told), -1, *values.shape[1:])
                return (parts * weights.to(parts)[:, None]).sum(dim=0)

            return Denoised(mean(said.x0), None if said.variance is None else mean(said.variance))

        return mixed
