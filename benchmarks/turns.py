"""Sides that take turns in one process, because machines drift; and the machine's name."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.acceleration.openvino import runtime
from sfumato.core.errors import MissingExtra

Side = Callable[[], Tensor]
FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_tile")


def in_turns(
    sides: dict[str, Side], turns: int, steps: dict[str, int] | None = None, warm: bool = True
) -> dict[str, Any]:
    """Seconds of each side, its ratio to the first, and how far its result is from the first's.

    Args:
        sides: what is measured; each gives what it made.
        turns: of all sides.
        steps: of one call of a side, if not one.
        warm: whether a turn before these is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    made: dict[str, Tensor] = {}
    with torch.inference_mode():
        for turn in range(turns + warm):
            for name, side in sides.items():
                start = time.perf_counter()
                made[name] = side()
                if turn >= warm:
                    times[name].append((time.perf_counter() - start) / (steps or {}).get(name, 1))
    (peer, reference), *_ = made.items()
    rows = {}
    for name, result in made.items():
        rows[name] = told(times[name])
        rows[name]["times as fast"] = statistics.median(times[peer]) / statistics.median(times[name])
        rows[name]["largest difference"] = float((result - reference).abs().max() / reference.abs().max())
    return rows


def told(times: list[float]) -> dict[str, Any]:
    """Seconds: the median, the least and the most."""
    return {"seconds": statistics.median(times), "from": min(times), "to": max(times)}


def openvino_side(network: nn.Module, given: tuple[Tensor, ...], eight: bool) -> dict[str, Side]:
    """OpenVINO in float32, or in eight bits by NNCF, where they are installed; threads as PyTorch has."""
    try:
        openvino = runtime()
        if eight:
            import nncf
    except (MissingExtra, ImportError):
        return {}

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Tensor) -> Tensor:
            made: Tensor = self.network(*given).sample
            return made

    with torch.no_grad():
        model = openvino.convert_model(Traced(), example_input=given)
    numbers = [each.numpy() for each in given]
    if eight:
        # Ranges of the very input it is then given: the least that can go wrong for it.
        one = nncf.Dataset([numbers])
        model = nncf.quantize(model, one, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    made = openvino.compile_model(model, "CPU", settings)
    name = "OpenVINO int8 (NNCF)" if eight else "OpenVINO"
    return {name: lambda: torch.from_numpy(made(numbers)[0])}


def machine() -> str:
    """What the processor calls itself, and what it can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    kept = os.environ.get("ONEDNN_MAX_CPU_ISA")
    able = ", ".join(flag for flag in FLAGS if flag in flags) + (f"; oneDNN kept to {kept}" if kept else "")
    return f"{names[0] if names else platform.processor()} ({able})"
