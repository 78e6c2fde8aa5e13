"""Evaluation by name: what is said beside the numbers, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato.checkpoints import native
from sfumato.core.classifier import NoisyClassifier
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.interfaces import measuring
from sfumato.model import Model
from sfumato.registry import build

REAL = {"name": "emoji", "concepts": ["cat", "lemon", "red apple"], "size": 16}


def ask(place: Path, metrics: list[str], **more: Any) -> Any:
    settings = {"data": REAL, "count": 3, "features": "nothing", "seed": 0, "batch": 2, "walk": {}} | more
    return measuring.evaluate(place, metrics=metrics, **settings)


def test_bits_come_with_all_that_they_depend_on(tiny: Model, tmp_path: Path) -> None:
    native.save(tiny, tmp_path / "apples")
    first, second = str(ask(tmp_path / "apples", ["likelihood", " bound"])).split("\n")
    for words in ("(3 real)", "evaluations a picture", "rademacher", "uniform dequantisation", "t = 0.001"):
        assert words in first
    for words in ("(3 real)", "101 evaluations a picture", "100 of 999 steps", "no dequantisation"):
        assert words in second
    for line in (first, second):
        assert line.count("[") == 2, "the label's brackets and the interval's"
        assert "prior mismatch at most" in line
    # The same pictures in other batches: the same bits.
    whole, parts = (ask(tmp_path / "apples", ["bound"], batch=size)["bound"] for size in (3, 1))
    assert whole.value == pytest.approx(parts.value, rel=1e-5)


def test_what_has_no_bits_is_refused_before_pictures_are_made(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half:
        """Latents."""

        def encode(self, image: torch.Tensor, noise: object = None) -> torch.Tensor:
            return image[:, :, ::2, ::2]

    def never(*_: Any) -> None:
        raise AssertionError("pictures were made")

    monkeypatch.setattr(measuring, "_generated", never)
    monkeypatch.setattr(measuring, "_features", lambda name: None)
    latent = Model(tiny.denoiser, tiny.conditioner, Half())  # type: ignore[arg-type]
    monkeypatch.setattr(measuring, "load", lambda place: latent)
    with pytest.raises(InvalidInput, match="model of latents gives no bits"):
        ask(tmp_path, ["frechet", "likelihood"])
    classifier = NoisyClassifier(tiny.denoiser.network, tiny.process, "concept")
    judge = Model(classifier, tiny.conditioner, tiny.space)
    monkeypatch.setattr(measuring, "load", lambda place: judge)
    for metric in ("likelihood", "bound"):
        with pytest.raises(InvalidInput, match="a classifier makes no pictures"):
            ask(tmp_path, ["frechet", metric])
    grey = {"name": "images", "root": str(tmp_path)}
    monkeypatch.setattr(measuring, "load", never)
    with pytest.raises(NotFound, match=r"no metric is called 'likelihod'.*did you mean likelihood"):
        ask(tmp_path, ["bound", "likelihod"], data=grey)


def test_data_that_say_their_size_are_generated_at_it(tmp_path: Path) -> None:
    """Pictures of a folder say `size`, which a model of maps heeds: it is the size to generate."""
    for number in range(3):
        Image.effect_noise((40, 24), 60 + number).convert("RGB").save(tmp_path / f"{number}.png")
    real = build(
        "data", {"name": "pairs", "source": str(tmp_path), "target": str(tmp_path), "size": [16, 24]}
    )
    network = {
        "name": "adm",
        "in_channels": 6,
        "channels": 32,
        "multipliers": [1],
        "blocks": 1,
        "attention": [],
    }
    parts = {"process": "flow", "prediction": "velocity", "conditioner": "image"}
    model = Model.from_description({"network": network, **parts}, {"size": [8, 8], "steps": 1})
    (made,) = measuring._generated(model, real, [[0, 2]], 0, {})
    assert made.shape == (2, 3, 16, 24)
