"""A network small enough to build and walk in milliseconds, under a name like any other."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sfumato.acceleration import native
from sfumato.conditioners.class_label import ClassLabel
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.prediction import Velocity
from sfumato.model import Model
from sfumato.processes.vp import VP
from sfumato.spaces.pixel import Pixel


@dataclass(eq=False, repr=False)
class Tiny(nn.Module):
    """Two convolutions that see the time and the class."""

    in_channels: int = 3
    width: int = 8
    classes: int = 5

    def __post_init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(self.in_channels, self.width, 3, padding=1)
        self.told = nn.Linear(self.classes, self.width)
        self.norm = nn.GroupNorm(2, self.width)
        self.leave = nn.Conv2d(self.width, self.in_channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W), time (B,) → (B, C, H, W)."""
        told = self.told(condition.vector) + torch.sin(time / 100)[:, None].to(self.told.weight.dtype)
        return self.leave(torch.relu(self.norm(self.enter(x) + told[:, :, None, None])))


def pytest_configure(config: pytest.Config) -> None:
    """Kernels that tests build, some of them while tests are looked for, are not kept in the home."""
    kept = tempfile.TemporaryDirectory()
    native.KEPT = Path(kept.name)
    config.add_cleanup(kept.cleanup)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model of red apples, cats and lemons in two styles, with random weights; saved and loaded by name."""
    module = ModuleType("sfumato.networks.tiny")
    monkeypatch.setattr(Tiny, "__module__", module.__name__)
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Tiny()
    labels = {"concept": ["red apple", "cat", "lemon"], "style": ["noto", "fluent 3d"]}
    card = {"size": [16, 16], "guidance": [{"name": "classifier_free", "scale": 3.0}], "steps": 6}
    card |= {"licence": "CC0-1.0"}
    return Model(NetworkDenoiser(network, VP(), Velocity()).eval(), ClassLabel(labels), Pixel(), card)


@pytest.fixture
def text_unet() -> Callable[..., Model]:
    """Makes a small U-Net of pixels with words of its own, none of whose weights is zero."""

    def make(blocks: int = 1, heads: int = 2) -> Model:
        torch.manual_seed(0)
        network = {
            "name": "sd_unet",
            "in_channels": 3,
            "out_channels": 3,
            "channels": 32,
            "multipliers": [1, 2],
        }
        encoder = {"name": "text_small", "width": 16, "depth": 1, "heads": 2, "dim_head": 8, "length": 32}
        model = Model.from_description(
            {
                "network": {**network, "blocks": blocks, "attention": [1, 2], "heads": heads, "tokens": 16},
                "process": "flow",
                "prediction": "data",
                "time_input": "thousand",
                "conditioner": {"name": "text_small", "encoder": {**encoder, "tokenizer": "word_piece"}},
                "space": {"name": "pixel", "multiple": 2},
            }
        )
        for weight in model.denoiser.network.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
        return model

    return make
