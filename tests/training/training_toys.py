"""Tiny models and data for the training tests."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.class_label import ClassLabel
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.noise import Noise
from sfumato.core.prediction import PREDICTIONS
from sfumato.model import Model
from sfumato.processes.vp import VP

LABELS = {"kind": ["left", "right"]}


@dataclass(frozen=True)
class Points:
    """A space of points: x is what the data set holds."""

    def encode(self, image: Tensor, noise: object = None) -> Tensor:
        return image

    def decode(self, x: Tensor) -> Tensor:
        return x

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        return (height,)


@dataclass(eq=False, repr=False)
class Toy(nn.Module):
    """Three layers on flattened x, time and class, with dropout; before them a convolution of `channels`."""

    size: int = 2
    width: int = 32
    dropout: float = 0.0
    classes: int = 2
    outputs: int = 1
    channels: int = 0
    frequencies: Any = field(default=4, repr=False)

    def __post_init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(self.channels, self.channels, 3, padding=1) if self.channels else nn.Identity()
        self.inner = nn.Sequential(
            nn.Linear(self.size + 2 * self.frequencies + self.classes, self.width),
            nn.SiLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.width, self.width),
            nn.LayerNorm(self.width),
            nn.SiLU(),
            nn.Linear(self.width, self.size * self.outputs),
        )

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        angle = time[:, None] * torch.pi * 2.0 ** torch.arange(-1, self.frequencies - 1, device=x.device)
        parts = [self.first(x).flatten(1), angle.sin(), angle.cos()]
        if self.classes:
            parts.append(
                condition.vector if condition.vector is not None else x.new_zeros(len(x), self.classes)
            )
        out = self.inner(torch.cat(parts, 1))
        return out.view(len(x), x.shape[1] * self.outputs, *x.shape[2:])


@dataclass(frozen=True)
class Blobs:
    """Points on a noisy pair of blobs (or pictures of them), each item a function of index and seed alone."""

    count: int = 40
    shape: tuple[int, ...] = (2,)
    weight: float = 0.3
    seed: int = 0
    bad: tuple[int, ...] = ()
    jitter: float = 0.05

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, seed: int) -> Any:
        if index in self.bad:
            raise OSError(f"item {index} is broken")
        points, right = _blobs(self.count, self.shape, self.weight, self.seed)
        shift = self.jitter * math.sin(seed % 1000003)
        return SimpleNamespace(image=points[index] + shift, inputs={"kind": LABELS["kind"][right[index]]})

    def collate(self, items: Any) -> Any:
        return SimpleNamespace(
            image=torch.stack([item.image for item in items]),
            inputs={"kind": [item.inputs["kind"] for item in items]},
        )

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


@functools.cache
def _blobs(count: int, shape: tuple[int, ...], weight: float, seed: int) -> tuple[Tensor, list[bool]]:
    noise = Noise(torch.arange(count) + seed)
    right = noise.uniform((count, 1), "side")[:, 0] >= weight
    centre = torch.where(right, 0.6, -0.6).view(-1, *[1] * len(shape))
    return (centre + 0.1 * noise.randn((count, *shape), "own")).float(), right.tolist()


def toy_model(seed: int = 0, prediction: str = "velocity", process: Any = None, **network: Any) -> Model:
    torch.manual_seed(seed)
    outputs = network.pop("outputs", 1)
    denoiser = NetworkDenoiser(
        Toy(outputs=outputs, **network),
        process or VP(),
        PREDICTIONS[prediction](),
        "time",
        learned_range=outputs == 2,
    )
    return Model(denoiser, ClassLabel(LABELS), Points())


def distributed_case(directory: Any) -> None:
    """A run that uses everything processes must agree on.

    Parts, validation, grids, a learning law, matrices of which each makes some orthogonal, idle weights.
    """
    from PIL import Image

    from sfumato.training.ema import Average
    from sfumato.training.levels.importance import Importance
    from sfumato.training.objectives.denoising import Denoising
    from sfumato.training.optimizers import AdamW
    from sfumato.training.settings import Saving, Settings, Validating
    from sfumato.training.trainer import Trainer

    settings = Settings(
        batch=8,
        accumulate=2,
        steps=6,
        device="cpu",
        ema=(Average(0.9),),
        optimizer=AdamW(1e-2, matrices="muon"),
        saving=Saving(every=2),
        validation=Validating(every=3, items=4, bands=2),
        sample_every=2,
    )

    class Partly(Denoising):
        def parameters(self, model: Any) -> Any:
            return ((name, p) for name, p in super().parameters(model) if "idle" not in name)

    objective, model = Partly(levels=Importance(bins=2, memory=2)), toy_model()
    model.denoiser.network.idle = nn.Linear(2, 2)
    grid = lambda model, step: Image.new("RGB", (4, 4))  # noqa: E731
    Trainer(model, Blobs(), objective, settings, directory, sample_grid=grid).train()
