"""How fast a model of Stable Diffusion's size draws here, beside diffusers, in one run.

All sides have the same weights, drawn at random, and take turns in one process, because machines drift;
medians of the turns. What is lossless and what is not stand apart, each with what it changes.

    python benchmarks/speed.py                      # all parts: docs/speed.md, its figures in docs/speed.json
    python benchmarks/speed.py --only unet_32       # a part; the others stay as they were
    python benchmarks/speed.py --only ""            # the page of parts measured before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import emoji_measures
import full_size
import torch
from latent_measures import draw, interval, share
from latent_page import table
from torch import Tensor, nn
from turns import Side, in_turns, machine, openvino_side, told

import sfumato
from sfumato.acceleration.packed import PackedConv2d, PackedLinear
from sfumato.acceleration.prepack import Prepack
from sfumato.acceleration.presets import PRESETS
from sfumato.checkpoints import sd_unet_keys, vae_keys
from sfumato.core.acceleration import Acceleration
from sfumato.core.condition import Condition
from sfumato.core.level import Level
from sfumato.core.noise import Noise
from sfumato.core.reverse import nested
from sfumato.interfaces.receipt import PLAIN, bench
from sfumato.interfaces.request import Request
from sfumato.metrics.clip_score import clip_score
from sfumato.model import Model
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build

ROOT = Path(__file__).parents[1]
SD1: dict[str, Any] = {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_SIDES = """`lossless` is the same network, each layer the way that is fastest here, its text's keys and
values kept from step to step, its first attention computed once for both rows, norms with their SiLU.
`balanced` caches blocks besides, at two steps of three, and its seconds are a third of three such steps'.
`int8` multiplies in eight bits, where that is faster, attention in sixteen. What they change a receipt of
`sfumato bench` says."""


def unet(side: int, eight: bool, turns: int, file: Path) -> dict[str, Any]:
    """One step with guidance, two rows: peers, ours, prepacked, with blocks cached; or in eight bits."""
    import diffusers

    theirs = diffusers.UNet2DConditionModel(**SD1).eval()
    ours = SDUNet.published("sd1").eval()
    ours.load_state_dict(sd_unet_keys.from_diffusers(theirs.state_dict()), assign=True)
    draw = torch.Generator().manual_seed(1)
    # What guidance asks: the same latents, with the prompt and without.
    x, tokens = torch.randn(1, 4, side, side, generator=draw), torch.randn(2, 77, 768, generator=draw)
    x, moment, told = x.repeat(2, 1, 1, 1), torch.full((2,), 500.0), Condition(tokens=tokens)

    def run(network: nn.Module, condition: Condition = told) -> Tensor:
        on = "meta" if next(network.parameters()).is_meta else "cpu"
        made: Tensor = network(x.to(on), moment.to(on), condition.to(on))
        return made

    # What takes memory for a while, NNCF, comes before what takes it for good.
    peers = openvino_side(theirs, (x, moment, tokens), eight)
    packed, ready = _prepared(ours, run, file, "int8" if eight else "lossless")

    def hooked(preset: str, *levels: float) -> Side:
        plan = nested(*(each.plan(packed) for each in _parts(preset)))

        def side() -> Tensor:
            for level in levels:
                hooks = None if plan is None else plan(Level(1 - level, level))
                made = run(packed, replace(told, branch=torch.arange(2), hooks=hooks))
            return made

        return side

    sides: dict[str, Side] = {"diffusers": lambda: theirs(x, moment, tokens).sample, **peers}
    if eight:
        sides["int8"] = hooked("int8", 0.5)
    else:
        # Three estimates in a row where blocks are cached, one of them whole: a third of that is a step.
        cached = hooked("balanced", 0.8, 0.5, 0.3)
        sides |= {"sfumato": partial(run, ours), "lossless": hooked("lossless", 0.5), "balanced": cached}
    rows = in_turns(sides, turns, steps={"balanced": 3})
    if eight:
        rows["int8"] |= ready
    else:
        # Nothing moves between its three estimates: what is kept is what would be computed.
        del rows["balanced"]["largest difference"]
        rows["lossless"] |= ready
    return rows


def decode(turns: int, file: Path) -> dict[str, Any]:
    """Latents to 512 x 512 pixels."""
    import diffusers

    theirs = diffusers.AutoencoderKL(**VAE).eval()
    state = vae_keys.from_diffusers(theirs.state_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    ours: Any = build("autoencoder", vae_keys.settings(shapes)).eval()
    ours.load_state_dict(state, assign=True)
    z = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))

    def run(autoencoder: Any) -> Tensor:
        made: Tensor = autoencoder.decode(z.to("meta" if next(autoencoder.parameters()).is_meta else "cpu"))
        return made

    packed, ready = _prepared(ours, run, file, "lossless")
    sides: dict[str, Side] = {
        "diffusers": lambda: theirs.decode(z).sample,
        "sfumato": partial(run, ours),
        "lossless": partial(run, packed),
    }
    rows = in_turns(sides, turns)
    rows["lossless"] |= ready
    return rows


def picture(turns: int, file: Path) -> dict[str, Any]:
    """A whole picture of 512 x 512 in 20 steps, from the prompt to the pixels, of the same folder."""
    import diffusers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sd15"
        full_size.write(argparse.Namespace(folder=folder, half=False))
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        model = sfumato.load(folder)
    theirs.set_progress_bar_config(disable=True)
    # The same walk on both sides, from the same noise.
    shipped = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs.scheduler = diffusers.DDIMScheduler(
        **shipped, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    noise = Noise([0]).randn((1, 4, 64, 64), "prior")
    asked: dict[str, Any] = {"prompt": full_size.PROMPT, "guidance": 7.5}
    walk: dict[str, Any] = {"sampler": "ddim", "times": {"name": "leading", "clean": False}, "steps": 20}

    def peer() -> Tensor:
        told = {"num_inference_steps": 20, "guidance_scale": 7.5, "latents": noise, "output_type": "pt"}
        made: Tensor = theirs(full_size.PROMPT, **told).images
        return 2 * made - 1

    def ours(preset: str, **more: Any) -> Side:
        if preset not in made:
            made[preset] = sfumato.optimize(model, preset, **asked)
        return lambda: sfumato.generate(made[preset], seed=0, **walk, **asked, **more).tensor

    made: dict[str, Model] = {}
    # Laid out weights are gigabytes: those of one preset serve the other.
    cached = ours("lossless", fast=PRESETS["balanced"][-2:])
    sides = {"diffusers": peer, "lossless": ours("lossless"), "balanced": cached, "int8": ours("int8")}
    # Each takes minutes: what a first turn takes more is not seen.
    return in_turns(sides, turns, warm=False)


def first(turns: int, file: Path) -> dict[str, Any]:
    """A picture of the embedded model, from the start of the process to the file; and a bare import."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        generate = ["-m", "sfumato", "generate", "a red apple, fluent 3d", "--seed", "1", "--out", folder]
        commands = {
            "import": ["-c", "import sfumato"],
            "bare Python": ["-c", "pass"],
            "a picture": generate,
            "a picture, lossless": [*generate, "--fast", "lossless"],
        }
        for turn in range(turns + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                if turn:
                    rows.setdefault(name, []).append(time.perf_counter() - start)
    return {name: told(times) for name, times in rows.items()}


def receipts(turns: int, file: Path) -> dict[str, Any]:
    """What each preset gains of the embedded model, and what it changes."""
    model, judge = sfumato.load("emoji"), emoji_measures.judge_of(sfumato.load("emoji_judge"))
    asked = emoji_measures.training_captions()[::2]
    prompts = [each.prompt for each in asked]
    request = Request(count=8, seed=0, inputs={"prompt": prompts[:8]})
    fast: list[Any] = ["lossless", "int8", "balanced", "draft", "token_merging"]
    rows = bench(model, request, fast, turns)
    for name, row in rows.items():
        quick = model if name == PLAIN else sfumato.optimize(model, name, count=8, prompt=prompts[:8])
        made = draw(quick, len(asked), prompt=prompts)
        names = [each.concept for each in asked]
        row["concept"] = share(emoji_measures.concepts(judge, made, asked, names))
        row["clip score"] = interval(clip_score(judge, made, prompts))
        if "error by fifth" in row:
            row["error by fifth"] = ", ".join(f"{error:.1e}" for error in row["error by fifth"])
    return rows


def _parts(preset: str) -> list[Acceleration]:
    return [
        part if isinstance(part, Acceleration) else build("acceleration", part) for part in PRESETS[preset]
    ]


def _prepared(module: Any, run: Callable[[Any], Any], file: Path, preset: str) -> tuple[Any, dict[str, Any]]:
    """A module as a preset makes it, and how long that took, when all is measured and again."""
    file.unlink(missing_ok=True)
    seconds, made = [], None
    for _ in range(2):
        # The first is let go of before the second is made: each has its own copy of the weights.
        made = None
        start, made = time.perf_counter(), module
        for part in _parts(preset):
            part = replace(part, kept=str(file)) if isinstance(part, Prepack) else part
            made = part.prepare(made, run)
        seconds.append(time.perf_counter() - start)
    layers = [each.packed for each in made.modules() if isinstance(each, PackedConv2d | PackedLinear)]
    told = {"layers packed": len(layers), "bytes more": sum(each.bytes for each in layers)}
    return made, {"ready at first": seconds[0], "ready again": seconds[1], **told}


PARTS: dict[str, tuple[str, Callable[[int, Path], dict[str, Any]]]] = {
    "unet_32": ("A step of SD1.5's U-Net, two rows, 32 x 32 latents", partial(unet, 32, False)),
    "int8_32": ("The same in eight bits", partial(unet, 32, True)),
    "unet_64": ("A step of SD1.5's U-Net, two rows, 64 x 64 latents", partial(unet, 64, False)),
    "int8_64": ("The same in eight bits", partial(unet, 64, True)),
    "decode": ("SD1.5's autoencoder, 64 x 64 latents to 512 x 512 pixels", decode),
    "picture": ("A whole picture: SD1.5, 512 x 512, 20 steps, guided", picture),
    "first": ("From the start of a process", first),
    "receipts": ("Receipts: eight pictures of the embedded model, and a hundred before its judge", receipts),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    file = arguments.out / "speed.json"
    by = f"{machine()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.turns} turns"
    for part in filter(None, arguments.only):
        with tempfile.TemporaryDirectory() as folder:
            rows = PARTS[part][1](arguments.turns, Path(folder) / "ways.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, part: {"by": by, "rows": rows}}, indent=1))
        print(part, json.dumps(rows, indent=1), flush=True)
    found = json.loads(file.read_text())
    sections = "\n\n".join(
        f"## {heading}\n\n{found[part]['by']}.\n\n{table(found[part]['rows'])}"
        for part, (heading, _) in PARTS.items()
        if part in found
    )
    (arguments.out / "speed.md").write_text(
        "# Speed, beside diffusers\n\nWritten by `python benchmarks/speed.py`, part by part: each says on "
        "what, in float32 but where it says otherwise; medians of turns, in which all sides alternate."
        f"\n\n{_SIDES}\n\n{sections}\n"
    )


if __name__ == "__main__":
    main()
