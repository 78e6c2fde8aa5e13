"""Stable Diffusion 1.5 at full size, with random weights, on two cores: loaded, planned and walked.

Writes a folder of diffusers of 1,066,235,307 random weights, loads it, tells the plan of a picture of
256 x 256 in 4 steps with guidance, makes it, and puts what was measured beside what was told; and the same
plans of small models, of pixels and of latents, with several samplers. Every part runs in a process of its
own, so that peaks are its alone.

    python benchmarks/full_size.py            # page to docs/full_size.md
    python benchmarks/full_size.py --half     # weights in float16
"""

from __future__ import annotations

import argparse
import importlib
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sfumato
from sfumato.checkpoints import diffusers
from sfumato.checkpoints.native import hash_of
from sfumato.checkpoints.safe import read_header, read_tensors, refuse_non_finite
from sfumato.checkpoints.stable import describe_model
from sfumato.encoders.clip_text import PUBLISHED as TEXTS
from sfumato.generation.memory import bytes_of_weights
from sfumato.model import Model
from sfumato.networks.sd_unet import PUBLISHED

GIB = 2**30
PROMPT = "a lighthouse on a cliff above the sea, evening light"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "full_size.md")
    parser.add_argument("--part", choices=PARTS, help="one part, in this process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--case", choices=SMALL)
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, on a busy machine")
    arguments = parser.parse_args()
    if arguments.cpu:
        # What other programs take does not count, on neither side.
        importlib.import_module("sfumato.generation.plan")._clock = _clock[0] = time.process_time
    torch.set_num_threads(arguments.threads)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = Path(temporary) / "sd15"
        if shutil.disk_usage(temporary).free < 8 * GIB:
            raise SystemExit("not enough room on the disk: 8 GiB are needed")
        told = {part: _child(part, arguments) for part in PARTS if part != "small"}
        told["small"] = {case: _child("small", arguments, case) for case in SMALL}
    page = _page(told, arguments)
    arguments.out.write_text(page, "utf-8")
    print(page)


def write(arguments: argparse.Namespace) -> dict[str, Any]:
    """A folder of Stable Diffusion 1.5, of random weights."""
    description = describe_model(
        {"name": "sd_unet", "in_channels": 4, "out_channels": 4, **PUBLISHED["sd1"]},
        {"name": "kl"},
        0.18215,
        0.0,
        [{"name": "prompt_states", "text": {"name": "clip_text", **TEXTS["clip_l14"]}}],
        {"name": "betas", "schedule": "scaled_linear"},
        "noise",
    )
    torch.manual_seed(0)
    model = Model.from_description(description, {"size": [512, 512], "sampler": "dpm_solver_pp"})
    for part in model.modules().values():
        for weight in part.parameters():
            # What training would start at nothing says something here, so that nothing passes unseen.
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
    if arguments.half:
        model.to(torch.float16)
    diffusers.write(model, arguments.folder)
    return {"parameters": sum(p.numel() for part in model.modules().values() for p in part.parameters())}


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Its peak and its time, and what of that is looking for NaN and hashing."""
    base = _resident()
    _reset()
    model, seconds = _timed(lambda: sfumato.load(arguments.folder))
    weights = bytes_of_weights(*model.modules().values())
    tensors = {f"{p}.{n}": t for p, part in model.modules().items() for n, t in part.state_dict().items()}
    files = sorted(arguments.folder.rglob("*.safetensors"))
    return {
        "weights": weights,
        "peak": _peak() - base,
        "seconds": seconds,
        "scan": _timed(lambda: refuse_non_finite(tensors, "model"))[1],
        "hash": _timed(lambda: [hash_of(file) for file in files])[1],
    }


def widened(arguments: argparse.Namespace) -> dict[str, Any]:
    """The peak of loading it in double the numbers it is saved in: each tensor is cast by itself."""
    base = _resident()
    _reset()
    dtype = torch.float32 if arguments.half else torch.float64
    model = sfumato.load(arguments.folder, dtype=dtype)
    return {"weights": bytes_of_weights(*model.modules().values()), "peak": _peak() - base}


def ways(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reading the largest file against mapping it and copying out of the map, each touched once."""
    file = max(arguments.folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    file.read_bytes()  # in the page cache for both
    found: dict[str, Any] = {"bytes": file.stat().st_size}
    base = _resident()
    _reset()
    tensors, found["read"] = _timed(lambda: read_tensors(file))
    found["read_peak"] = _peak() - base
    del tensors
    base = _resident()
    _reset()
    tensors, found["copied"] = _timed(lambda: _copied(file))
    found["copied_peak"] = _peak() - base
    del tensors
    script = (
        "import mmap, os, sys\n"
        "with open(sys.argv[1], 'r+b') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)\n"
        "    os.truncate(sys.argv[1], 10); m[8192]\n"
    )
    small = arguments.folder / "shrinks"
    small.write_bytes(bytes(16384))
    found["mapped_and_shrunk"] = subprocess.run([sys.executable, "-c", script, str(small)]).returncode
    return found


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """The plan of a picture, then the picture."""
    _warm()
    base = _resident()
    model, seconds = _timed(lambda: sfumato.load(arguments.folder))
    asked = {"prompt": PROMPT, "size": arguments.size, "steps": arguments.steps, "guidance": 7.5}
    return {"loading": seconds, **_compared(model, base, **asked)}


ADM = {"name": "adm", "channels": 96, "multipliers": [1, 2, 3], "blocks": 2}
LATENT = {"name": "kl", "width": 64, "multipliers": [1, 2, 2]}
SMALL: dict[str, dict[str, Any]] = {
    "pixels 64, 4 at once, ddim": {"size": 64, "count": 4, "steps": 6, "sampler": "ddim"},
    "pixels 128, heun": {"size": 128, "steps": 4, "sampler": "heun"},
    "pixels 64, ancestral": {"size": 64, "count": 2, "steps": 8, "sampler": "ancestral"},
    "latents of 256, guided, dpm_solver_pp": {"size": 256, "steps": 6, "guidance": 4.0, "concept": "cat"},
    "latents of 128, guided in an interval, dpm2": {
        "size": 128,
        "count": 2,
        "steps": 6,
        "sampler": "dpm2",
        "concept": "cat",
        "guidance": {"name": "interval", "low": 0.2, "high": 2.0},
    },
}


def small(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of a small model."""
    asked = SMALL[arguments.case]
    description: dict[str, Any] = {"network": ADM, "process": "vp", "prediction": "noise"}
    if "concept" in asked:
        description |= {
            "network": {**ADM, "classes": 2, "in_channels": 4, "out_channels": 4},
            "prediction": "velocity",
            "conditioner": {"name": "class_label", "labels": {"concept": ["cat", "lemon"]}},
            "space": {"name": "latent", "autoencoder": LATENT, "multiple": 4},
        }
    _warm()
    model = Model.from_description(description)
    return _compared(model, None, **asked)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    each.__name__: each for each in (write, load, widened, ways, make, small)
}


def _warm() -> None:
    """What the program itself takes, once all of it was used, is no model's."""
    network = {"name": "adm", "channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": []}
    space = {
        "name": "latent",
        "autoencoder": {"name": "kl", "width": 32, "multipliers": [1, 2]},
        "multiple": 2,
    }
    description = {"network": {**network, "in_channels": 4, "out_channels": 4}, "space": space}
    model = Model.from_description({**description, "process": "vp", "prediction": "noise"})
    for sampler in ("dpm_solver_pp", "ancestral"):
        asked = {"size": 64, "steps": 2, "sampler": sampler, "guidance": 2.0}
        sfumato.plan(model, **asked)
        sfumato.generate(model, **asked)


def _compared(model: Model, base: int | None, **asked: Any) -> dict[str, Any]:
    """A plan and what was measured; memory above `base`, the program without a model, or above the model.

    Planning counts: it asks for one estimate of the real size, and memory once taken is seldom given back.
    """
    before = _resident()
    _reset()
    planned, seconds_planning = _timed(lambda: sfumato.plan(model, **asked))
    _, seconds = _timed(lambda: sfumato.generate(model, seed=0, **asked))
    grown = _peak() - before
    above = planned.memory - planned.weights
    return {
        "planned_bytes": above if base is None else planned.memory,
        "bytes": grown if base is None else _peak() - base,
        "planned_walk": above,
        "walk": grown,
        "planned_seconds": planned.seconds,
        "seconds": seconds,
        "planning": seconds_planning,
        "calls": planned.calls,
        "per_call": planned.seconds_per_call,
        "decoding": planned.seconds_decoding,
    }


def _copied(file: Path) -> dict[str, torch.Tensor]:
    """Tensors cloned out of a private map, which shrinking the file would make a fatal signal."""
    header = read_header(file)
    with open(file, "rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    return {
        name: torch.frombuffer(
            pages, dtype=each.dtype, count=(each.end - each.begin) // each.dtype.itemsize, offset=each.begin
        )
        .view(each.shape)
        .clone()
        for name, each in header.entries.items()
    }


def _child(part: str, arguments: argparse.Namespace, case: str = "") -> dict[str, Any]:
    given = [f"--{name}={getattr(arguments, name)}" for name in ("size", "steps", "threads", "folder")]
    switches = [name for name in ("half", "cpu") if getattr(arguments, name)]
    line = [sys.executable, __file__, "--part", part, *given, *(f"--{name}" for name in switches)]
    line += ["--case", case] if case else []
    start = time.perf_counter()
    # What the C library keeps of freed memory would be counted to small models: it is told to give it back.
    told = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if case else {})}
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True, env=told)
    found = done.stdout.splitlines()[-1]
    print(f"{case or part}: {time.perf_counter() - start:.0f} s, {found}", file=sys.stderr, flush=True)
    return dict(json.loads(found))


_clock: list[Callable[[], float]] = [time.perf_counter]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = _clock[0]()
    value = work()
    return value, _clock[0]() - start


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _reset() -> None:
    """The peak is counted from now."""
    Path("/proc/self/clear_refs").write_text("5")


def _page(told: dict[str, Any], arguments: argparse.Namespace) -> str:
    loaded, wide, way, made = (told[part] for part in ("load", "widened", "ways", "make"))
    rows = {f"Stable Diffusion 1.5, {arguments.size} x {arguments.size}, guided": made, **told["small"]}
    table = "\n".join(
        f"| {name} | {row['planned_bytes'] / GIB:.3f} | {row['bytes'] / GIB:.3f} "
        f"| {row['planned_bytes'] / row['bytes']:.2f} | {row['calls']} | {row['planned_seconds']:.1f} "
        f"| {row['seconds']:.1f} | {row['planned_seconds'] / row['seconds']:.2f} |"
        for name, row in rows.items()
    )
    return f"""# Stable Diffusion 1.5 at full size on two cores

{told["write"]["parameters"]:,} random weights in {"float16" if arguments.half else "float32"}, in a folder of
diffusers. Written by `python benchmarks/full_size.py{" --half" * arguments.half}` on {platform.machine()},
{os.cpu_count()} cores of which {arguments.threads} threads were asked for, torch {torch.__version__}.

## Loading

| | |
|---|---|
| weights | {loaded["weights"] / GIB:.2f} GiB |
| peak while loading, above the program | {loaded["peak"] / GIB:.2f} GiB |
| peak / weights | **{loaded["peak"] / loaded["weights"]:.3f}** |
| time, files in the page cache | {loaded["seconds"]:.1f} s |
| of it looking for NaN and infinity | {loaded["scan"]:.2f} s, {loaded["scan"] / loaded["seconds"]:.1%} |
| of it sha256 | {loaded["hash"]:.1f} s |
| peak / weights, cast to twice the width | {wide["peak"] / wide["weights"]:.3f} |

Files are read, not mapped: one handle, straight into the memory of the parameters. Of the largest file,
{way["bytes"] / GIB:.2f} GiB:

| | seconds | peak / file |
|---|---|---|
| read into the parameters | {way["read"]:.2f} | {way["read_peak"] / way["bytes"]:.2f} |
| copied out of a private map | {way["copied"]:.2f} | {way["copied_peak"] / way["bytes"]:.2f} |

A file that shrinks while it is read is an error; a process that touches a private map of one ended with code
{way["mapped_and_shrunk"]} (SIGBUS is -7). A map would save nothing either: hash and scan touch every page.

## Plan and measurement

`--plan` was told before, all else after. Memory is above the program without a model (Stable Diffusion) or
above the loaded model (small ones, with freed memory given back: MALLOC_MMAP_THRESHOLD_ of 1 MiB, without
which the C library keeps up to as much again). Seconds are
of {"the processor" if arguments.cpu else "the clock"}.

| | planned, GiB | measured, GiB | ratio | estimates | planned, s | measured, s | ratio |
|---|---|---|---|---|---|---|---|
{table}

Loading took {made["loading"]:.1f} s, planning {made["planning"]:.1f} s. One estimate (two rows, for guidance)
was told as {made["per_call"]:.1f} s; decoding as {made["decoding"]:.1f} s. Above the loaded weights the
picture took {made["walk"] / GIB:.2f} GiB, {made["planned_walk"] / GIB:.2f} were told.
"""


if __name__ == "__main__":
    main()
