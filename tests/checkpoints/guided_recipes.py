"""What the published code of guided-diffusion, improved-diffusion and DiT says, recorded once.

Of openai/guided-diffusion 22e0df8, openai/improved-diffusion 1bc7bbb, facebookresearch/DiT ed81ce2, with
small settings: `p_mean_variance` without clipping at three steps (of the classifier, its logits), on weights
filled by `drawn` of network_recipes under their own names. Beside it, names and shapes of every published
network, built by their code with the flags of their pages, as SHA-256 of the sorted lines "name shape".
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import drawn
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "fixtures"
KEYS: dict[str, dict[str, Any]] = json.loads((FOLDER / "published_keys.json").read_text())


@dataclass(frozen=True)
class Recorded:
    """One network of theirs: what its weights do not tell, its weights, its inputs and outputs."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]


def recorded(name: str) -> Recorded:
    """A network of theirs by name; its weights are drawn anew and checked."""
    with safe_open(FOLDER / "guided_models.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()[name])
        tensors = {k.partition(".")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(name + ".")}  # noqa: SIM118
    weights = drawn({key: torch.empty(shape) for key, shape in recipe["shapes"].items()}, recipe["seed"])
    checksum = float(sum(w.double().abs().sum() for w in weights.values()))
    assert checksum == pytest.approx(recipe["checksum"], rel=1e-9), "torch draws other numbers than it did"
    return Recorded(recipe["settings"], {key: weights[key] for key in recipe["shapes"]}, tensors)


def told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Names and shapes as KEYS has them."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
    return {"tensors": len(lines), "parameters": sum(map(prod, shapes.values())), "sha256": digest}


def hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of these shapes whose numbers are a hole: gigabytes that take no room."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def log_variance(model: Any, fraction: Tensor, k: Tensor) -> Tensor:
    """log Σ between the posterior's variance and beta, at steps k (Nichol & Dhariwal 2021, equation 15)."""
    betas = model.process.betas.double()
    product = torch.cumprod(1 - betas, 0)[k]
    before = product / (1 - betas[k])
    least, most = (betas[k] * (1 - before) / (1 - product)).log(), betas[k].log()
    shape = (-1, *[1] * (fraction.ndim - 1))
    return fraction * most.view(shape) + (1 - fraction) * least.view(shape)
