"""How fast networks of Stable Diffusion's sizes are on a GPU, beside diffusers, plain and compiled.

All sides have the same weights, drawn at random, in 16 bits, and take turns in one process; medians of the
turns. Achieved TFLOP/s stand beside what a large matrix product reaches on the same device.

    python benchmarks/gpu.py                                     # all cases, then docs/gpu.md
    python benchmarks/gpu.py --only sd15 --batches 1             # a part of them
    python benchmarks/gpu.py --device cpu --tiny --turns 1       # to try the script out where no GPU is
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from latent_page import table
from speed import SD1, VAE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from turns import Side

from sfumato.acceleration.compile import Compile
from sfumato.checkpoints import sd_unet_keys, vae_keys
from sfumato.core.condition import Condition
from sfumato.core.meta import on_meta
from sfumato.networks.sd_unet import SDUNet
from sfumato.registry import build

ROOT = Path(__file__).parents[1]
_XL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_TINY = {"block_out_channels": (32, 64), "layers_per_block": 1}
_TINY_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
_COMPILED = {"mode": "max-autotune", "fullgraph": True}
"""What diffusers' own pages recommend, with channels last."""


class Case:
    """A network of both libraries with the same weights, and what it is given.

    Args:
        name: "sd15", "sdxl" or "vae".
        batch: rows.
        side: of the latents.
        tiny: a network of the same kind in which next to nothing is computed.
        device, dtype: of everything.
    """

    def __init__(self, name: str, batch: int, side: int, tiny: bool, device: str, dtype: torch.dtype) -> None:
        import diffusers

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        self.x = normal(batch, 4, side, side)
        self.more: tuple[Any, ...] = ()
        if name == "vae":
            settings = VAE | (_TINY if tiny else {})
            if tiny:
                settings |= {each: settings[each][:2] for each in ("down_block_types", "up_block_types")}
            self.theirs: Any = diffusers.AutoencoderKL(**settings)
            state = vae_keys.from_diffusers(self.theirs.state_dict())
            shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
            self.ours: Any = build("autoencoder", vae_keys.settings(shapes))
        else:
            settings = {"sd15": SD1, "sdxl": _XL}[name] if not tiny else _TINY | _TINY_UNET
            self.theirs = diffusers.UNet2DConditionModel(**settings)
            state = sd_unet_keys.from_diffusers(self.theirs.state_dict())
            if tiny:
                layout = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
                self.ours = SDUNet(**layout, heads=2, tokens=16)
            else:
                self.ours = SDUNet.published({"sd15": "sd1"}.get(name, name))
            moment, tokens = torch.full((batch,), 500.0, device=device), normal(batch, 77, self.ours.tokens)
            vector = normal(batch, 2816) if name == "sdxl" and not tiny else None
            self.more = (moment, tokens, vector)
        self.ours.load_state_dict(state)
        for part in (self.theirs, self.ours):
            part.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(
                False
            )

    def diffusers(self, network: Any) -> Tensor:
        """Its own call."""
        if not self.more:
            made: Tensor = network.decode(self.x, return_dict=False)[0]
            return made
        moment, tokens, vector = self.more
        told = {}
        if vector is not None:
            # Pooled text and six numbers, of which it makes the last 1,536 itself.
            numbers = torch.zeros(len(self.x), 6, device=self.x.device, dtype=self.x.dtype)
            told = {"added_cond_kwargs": {"text_embeds": vector[:, :1280], "time_ids": numbers}}
        made = network(self.x, moment, tokens, return_dict=False, **told)[0]
        return made

    def sfumato(self, network: Any) -> Tensor:
        """Ours, on whatever device the network is."""
        on = next(network.parameters()).device
        if not self.more:
            decoded: Tensor = network.decode(self.x.to(on))
            return decoded
        moment, tokens, vector = (each if each is None else each.to(on) for each in self.more)
        made: Tensor = network(self.x.to(on), moment, Condition(tokens=tokens, vector=vector))
        return made

    def sides(self) -> dict[str, Side]:
        """What takes turns."""
        compiled = torch.compile(self.theirs.decode if not self.more else self.theirs, **_COMPILED)
        if not self.more:
            theirs: Side = lambda: compiled(self.x, return_dict=False)[0]  # noqa: E731
        else:
            theirs = lambda: self.diffusers(compiled)  # noqa: E731
        quick = Compile(mode="max-autotune").prepare(self.ours, self.sfumato)
        return {
            "diffusers": lambda: self.diffusers(self.theirs),
            "diffusers, compiled": theirs,
            "sfumato": lambda: self.sfumato(self.ours),
            "sfumato, compiled": lambda: self.sfumato(quick),
        }

    def work(self) -> int:
        """Floating-point operations of one call."""
        counter = FlopCounterMode(display=False)
        with counter:
            self.sfumato(on_meta(self.ours))
        return int(counter.get_total_flops())


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a large matrix product: what there is to reach."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [_seconds(lambda: one @ other, device) for _ in range(6)]
    return 2 * size**3 / min(times) / 1e12


def measured(case: Case, turns: int, device: str, rate: float) -> dict[str, Any]:
    """Seconds of each side, its share of the matrix rate, and how far its result is from the first's."""
    sides, work = case.sides(), case.work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    ready, made = {}, {}
    for turn in range(turns + 1):
        for name, side in sides.items():
            seconds = _seconds(lambda name=name, side=side: made.update({name: side().float()}), device)
            if turn:
                times[name].append(seconds)
            else:
                ready[name] = seconds
    (peer, reference), *_ = made.items()
    rows: dict[str, Any] = {}
    for name, taken in times.items():
        middle = statistics.median(taken)
        rows[name] = {
            "ms": middle * 1e3,
            "from": min(taken) * 1e3,
            "to": max(taken) * 1e3,
            "times as fast": statistics.median(times[peer]) / middle,
            "TFLOP/s": work / middle / 1e12,
            "of the matrix rate": work / middle / 1e12 / rate,
            "first call, s": ready[name],
            "largest difference": float((made[name] - reference).abs().max() / reference.abs().max()),
        }
    return rows


def _seconds(call: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=["sd15", "sdxl", "vae"])
    parser.add_argument(
        "--batches", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8]
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    device, tiny = arguments.device, arguments.tiny
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: say --device cpu --tiny --turns 1 to try the script out")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    sections = []
    with torch.inference_mode():
        rate = matrix_rate(device, dtype, 512 if tiny else 8192)
        for each in arguments.only:
            side = 16 if tiny else 128 if each == "sdxl" else 64
            for batch in arguments.batches:
                case = Case(each, batch, side, tiny, device, dtype)
                rows = measured(case, arguments.turns, device, rate)
                heading = f"## {each}, {batch} of {8 * side} x {8 * side} pixels"
                print(heading, table(rows), sep="\n\n", flush=True)
                sections.append(f"{heading}\n\n{table(rows)}")
    if tiny:
        return
    (arguments.out / "gpu.md").write_text(
        f"# Speed on a GPU, beside diffusers\n\nWritten by `python benchmarks/gpu.py`: {name}, torch "
        f"{torch.__version__}, {dtype}; a matrix product reaches {rate:.0f} TFLOP/s. Rows are of one call, "
        f"medians of {arguments.turns} turns, in which all sides alternate.\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


if __name__ == "__main__":
    main()
