"""The run files people copy: each reads, builds, and takes a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.core.noise import Noise
from sfumato.data.item import Batch
from sfumato.training.run_file import read

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "src" / "sfumato" / "interfaces" / "demo.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_file_makes_a_model_that_learns_from_its_pictures(path: Path) -> None:
    run = read(path)
    model, objective = run.build_model(), run.build_objective()
    height, width = run.card["size"]
    image = torch.rand(2, model.space.channels, height, width) * 2 - 1  # type: ignore[attr-defined]
    labels = getattr(model.conditioner, "labels", {})
    batch = Batch(image, {key: [names[0], names[-1]] for key, names in labels.items()})
    before = objective.loss(model, batch, Noise([1, 2])).value.mean()
    before.backward()
    gradients = [p.grad for _, p in objective.parameters(model) if p.grad is not None]
    # The network's last layer starts at zero, so that it alone is moved by the first step.
    assert any(bool((g != 0).any()) for g in gradients)
    optimizer = run.optimizer.build([p for _, p in objective.parameters(model)])
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    assert objective.loss(model, batch, Noise([1, 2])).value.mean() < before
