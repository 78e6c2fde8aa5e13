"""What memory is told before and what is then taken: training, Stable Diffusion XL, and models in turns.

Every part runs in a process of its own, so that peaks are its alone.

    python benchmarks/memory.py                   # all parts: docs/memory.md, its figures in docs/memory.json
    python benchmarks/memory.py --only training   # a part; the others stay as they were
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import full_size
import torch
from latent_page import table

import sfumato
from sfumato.checkpoints.stable import describe_model
from sfumato.core.meta import Undrawn
from sfumato.encoders.clip_text import PUBLISHED as TEXTS
from sfumato.model import Model
from sfumato.networks.sd_unet import PUBLISHED
from sfumato.training.ema import Average
from sfumato.training.plan import plan
from sfumato.training.run import train
from sfumato.training.run_file import Run

ROOT = Path(__file__).parents[1]
GIB = 2**30
_SWITCHES = 20
_UNET = {"name": "adm", "classes": 0}
_DIT = {"name": "dit", "in_channels": 3, "out_channels": 3, "patch": 4, "width": 384, "depth": 12, "heads": 6,
        "classes": 0}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "U-Net of 35.7 M, 32 of 32 x 32": {"network": _UNET, "batch": 32},
    "the same, recompute": {"network": _UNET, "batch": 32, "recompute": True},
    "the same, winograd": {"network": _UNET, "batch": 32, "winograd": True},
    "the same, in 4 parts": {"network": _UNET, "batch": 32, "accumulate": 4},
    "DiT of 33 M, 64 of 32 x 32": {"network": _DIT, "batch": 64},
}


def training(case: str) -> dict[str, Any]:
    """The plan of a run, and the peak of its first three steps."""
    settings = dict(CASES[case])
    model = {"network": settings.pop("network"), "process": "betas", "prediction": "noise"}
    data = {"name": "emoji", "size": 32}
    run = Run(model=model, data=data, steps=3, ema=(Average(0.999),), **settings)
    tiny = Run(model={**model, "network": {"name": "adm", "classes": 0, "channels": 32, "multipliers": [1]}},
               data=data, steps=2, batch=2)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # What the program itself takes, once all of it was used, is no run's.
        train(tiny, Path(folder) / "tiny", lambda event: None)
        gc.collect()
        before = full_size._resident()
        full_size._reset()
        train(run, Path(folder) / "run", lambda event: None)
        peak = full_size._peak() - before
    told = plan(run)
    return {"parameters, M": told.parameters / 1e6, "planned, GiB": told.memory / GIB,
            "measured, GiB": peak / GIB, "ratio": told.memory / peak}  # fmt: skip


def xl(case: str) -> dict[str, Any]:
    """Stable Diffusion XL in float32: one step of 1024 x 1024 without guidance, and the plan before it."""
    del case
    full_size._warm()
    before = full_size._resident()
    towers = [
        {"name": "prompt_states", "text": {"name": "clip_text", **TEXTS["clip_l14"]}},
        {"name": "prompt_states", "text": {"name": "clip_text", **TEXTS["openclip_bigg14"]}},
    ]
    network = {"name": "sd_unet", "in_channels": 4, "out_channels": 4, **PUBLISHED["sdxl"]}
    process = {"name": "betas", "schedule": "scaled_linear"}
    with Undrawn():
        model = Model.from_description(
            describe_model(network, {"name": "kl"}, 0.13025, 0.0, towers, process, "noise", zeros=True),
            {"size": [1024, 1024], "sampler": "euler"},
        )
    with torch.no_grad():
        for part in model.modules().values():
            for parameter in part.parameters():
                parameter.fill_(0.001)
    asked: dict[str, Any] = {"prompt": full_size.PROMPT, "steps": 1, "guidance": 1.0}
    row = full_size._compared(model, before, **asked)
    return {"weights, GiB": full_size.bytes_of_weights(*model.modules().values()) / GIB,
            "planned, GiB": row["planned_bytes"] / GIB, "measured, GiB": row["bytes"] / GIB,
            "ratio": row["planned_bytes"] / row["bytes"]}  # fmt: skip


def switches(case: str) -> dict[str, Any]:
    """Stable Diffusion 1.5 and the embedded model in turns, each drawing nothing but being used once."""
    del case
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "sd15"
        full_size.write(argparse.Namespace(folder=where, half=False))
        gc.collect()
        taken: list[int] = []
        for _ in range(_SWITCHES // 2):
            model: Model | None = sfumato.load(where)
            model = sfumato.load("emoji")
            sfumato.generate(model, prompt="a red apple, noto", steps=2)
            model = None
            gc.collect()
            taken.append(full_size._resident())
    return {"after the first two, GiB": taken[0] / GIB, f"after {_SWITCHES}, GiB": taken[-1] / GIB,
            "grown, MiB": (taken[-1] - taken[0]) / 2**20}  # fmt: skip


PARTS: dict[str, tuple[str, Callable[[str], dict[str, Any]], tuple[str, ...]]] = {
    "training": ("Training: what `--dry-run` tells, and the peak of the run", training, tuple(CASES)),
    "xl": ("Stable Diffusion XL: what `--plan` tells, and the peak", xl, ("1024 x 1024, float32",)),
    "switches": (
        f"{_SWITCHES} switches between Stable Diffusion 1.5 and the embedded model",
        switches,
        ("resident",),
    ),
}


def _child(part: str, case: str, threads: int) -> dict[str, Any]:
    line = [sys.executable, __file__, "--part", part, "--case", case, "--threads", str(threads)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--part", choices=PARTS, help="one part, in this process")
    parser.add_argument("--case", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part][1](arguments.case)))
        return
    file = arguments.out / "memory.json"
    for part in arguments.only:
        rows = {case: _child(part, case, arguments.threads) for case in PARTS[part][2]}
        found = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**found, part: rows}, indent=1))
        print(part, json.dumps(rows, indent=1), flush=True)
    found = json.loads(file.read_text())
    sections = "\n\n".join(
        f"## {heading}\n\n{table(found[part])}" for part, (heading, *_) in PARTS.items() if part in found
    )
    (arguments.out / "memory.md").write_text(
        "# Memory, told and taken\n\nWritten by `python benchmarks/memory.py`; every line is of a process of "
        "its own, and memory is above that of the program. Loading Stable Diffusion 1.5 and its pictures are "
        f"in full_size.md.\n\n{sections}\n"
    )


if __name__ == "__main__":
    main()
