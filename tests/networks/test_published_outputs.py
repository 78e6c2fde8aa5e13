"""Outputs of the published code, recorded once from openai/guided-diffusion (commit 22e0df8) and
facebookresearch/DiT (commit ed81ce2) on weights drawn by recipe.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from network_recipes import drawn
from safetensors import safe_open

from sfumato.core.condition import Condition
from sfumato.registry import build

FILE = Path(__file__).parent / "fixtures" / "published.safetensors"
with safe_open(FILE, "pt") as _file:
    RECORDED = sorted(name for name in _file.metadata() if name.startswith(("adm", "dit")))


@pytest.mark.parametrize("name", RECORDED)
def test_outputs_of_the_published_code(name: str) -> None:
    with safe_open(FILE, "pt") as file:
        recipe = json.loads(file.metadata()[name])
        told = {k.partition(".")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(name + ".")}  # noqa: SIM118
    network = build("network", {"name": recipe["network"], **recipe["settings"]}).eval()
    weights = drawn(network.state_dict(), recipe["seed"])
    checksum = float(sum(w.double().abs().sum() for w in weights.values()))
    assert checksum == pytest.approx(recipe["checksum"], rel=1e-9), "torch draws other numbers than it did"
    network.load_state_dict(weights)
    vector = torch.eye(network.classes)[told["label"]] if network.classes else None
    with torch.no_grad():
        out = network(told["x"], told["time"], Condition(vector=vector))
    torch.testing.assert_close(out, told["out"], rtol=1e-5, atol=1e-5)
