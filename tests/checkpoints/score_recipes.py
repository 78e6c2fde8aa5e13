"""What the published code of score-based models and EDM says, recorded once on weights drawn by recipe.

Of yang-song/score_sde_pytorch: networks of small settings, with the pure-torch path of its resampling (and,
for "convolutions", its call of `interpolate` mended, which torch refuses), `get_score_fn` at three times. Of
NVlabs/edm: the preconditioned networks at three noise levels. The shapes of their weights stand beside, in
their order; they are filled by `drawn` of network_recipes, so that nothing here depends on our names.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import drawn
from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).parent / "fixtures" / "score_models.safetensors"


@dataclass(frozen=True)
class Recorded:
    """One network of theirs: its recipe, its weights under their names, its inputs and outputs."""

    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]

    @property
    def sigmas(self) -> Tensor:
        """The ladder that score_sde keeps beside its weights, falling."""
        least, most, steps = self.recipe["sigmas"]
        return torch.linspace(math.log(most), math.log(least), steps, dtype=torch.float64).exp()

    @property
    def filters(self) -> dict[str, Tensor]:
        """The filters that EDM keeps beside its weights."""
        row = torch.tensor(self.recipe["taps"], dtype=torch.float32)
        kernel = (torch.outer(row, row) / row.sum() ** 2)[None, None]
        assert all(shape == list(kernel.shape) for shape in self.recipe["filters"].values())
        return {name: kernel.clone() for name in self.recipe["filters"]}


def recorded(name: str) -> Recorded:
    """A network of theirs by name; its weights are drawn anew and checked."""
    with safe_open(FILE, "pt") as file:
        recipe = json.loads(file.metadata()[name])
        tensors = {k.partition(".")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(name + ".")}  # noqa: SIM118
    empty = {key: torch.empty(shape) for key, shape in recipe["shapes"].items()}
    weights = drawn(empty, recipe["seed"])
    checksum = float(sum(w.double().abs().sum() for w in weights.values()))
    assert checksum == pytest.approx(recipe["checksum"], rel=1e-9), "torch draws other numbers than it did"
    return Recorded(recipe, {key: weights[key] for key in empty}, tensors)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to a tolerance of the largest of theirs, row by row."""
    scale = theirs.abs().flatten(1).amax(1).view(-1, *[1] * (theirs.ndim - 1))
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)
