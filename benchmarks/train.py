"""How fast sfumato trains, beside the loops people write with diffusers and denoising-diffusion-pytorch.

The same kind of network at the same size on the same pictures: the 35.7 M-parameter U-Net of DDPM for
CIFAR-10, a DiT of about 5 M parameters, and denoising-diffusion-pytorch's own U-Net. Steps alternate in one
process, because machines drift; medians over steps.

    python benchmarks/train.py            # writes docs/training_speed.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from turns import machine

from sfumato.conditioners.class_label import ClassLabel
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.prediction import Noise as PredictNoise
from sfumato.data.item import Item
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.dit import DiT
from sfumato.processes.betas import Betas
from sfumato.spaces.pixel import Pixel
from sfumato.training.ema import EMA, Average
from sfumato.training.levels.uniform import Uniform
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW, set_rate
from sfumato.training.parts import multiplies_bf16
from sfumato.training.progress import Event
from sfumato.training.settings import Saving, Settings
from sfumato.training.trainer import Trainer

PAGE = """# Training speed

Training steps on 32 x 32 pictures in memory, {threads} thread(s): sfumato's whole trainer (loading, noise,
logs and status included) beside the plain loop of diffusers' examples (`UNet2DModel` or
`DiTTransformer2DModel`, default AdamW, `EMAModel`) and denoising-diffusion-pytorch's step (Adam, EMA every
tenth step) around that same network, and around its own U-Net, which sfumato's trainer trains too. Ours are
trained with `winograd: true` and `compile: true`, whose code is made in the first step (but the last network
in bf16 is not compiled: its gradients are not finite then). In float32; and, where the processor multiplies
such numbers, in bf16 (`precision: auto`), beside the others in bf16 and as they come, in float32.
Steps take turns in one process; {steps} steps each, a DiT's four times as many, after {warm_up} of warm-up.
The last column is how much longer the other's step takes, the median of paired steps, with its quartiles.
Written by `python benchmarks/train.py` on {machine}, torch {torch}.

| network | loop | parameters | images/s | step, ms | least-most, ms | step against sfumato's |
|---|---|---|---|---|---|---|
{rows}
{missing}
The optimizer and the average alone, on given gradients (AdamW and one average of all weights):

| network | sfumato, ms | diffusers, ms | diffusers against sfumato |
|---|---|---|---|
{updates}
"""

CLASSES = [str(i) for i in range(10)]
WARM_UP = 2


class Pictures:
    """Noise in the shape of CIFAR-10, held in memory: loading is not what is measured."""

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 32, 32) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.load(index, 0)

    def load(self, index: int, seed: int) -> Item:
        return Item(self.images[index], {"label": CLASSES[index % 10]})

    def fingerprint(self) -> str:
        return f"benchmark of {len(self)}"


def our_unet() -> nn.Module:
    return ADM(classes=0)


def our_dit() -> nn.Module:
    return DiT(in_channels=3, out_channels=3, patch=4, width=192, depth=8, heads=6, classes=11)


def their_unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )


def their_dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=3,
        out_channels=3,
        num_layers=8,
        sample_size=32,
        patch_size=4,
        num_embeds_ada_norm=10,
    )


@dataclass(eq=False, repr=False)
class Own(nn.Module):
    """denoising-diffusion-pytorch's U-Net, as a network of sfumato's."""

    dim: int = 64

    def __post_init__(self) -> None:
        super().__init__()
        self.network = _lucidrains().Unet(dim=self.dim, flash_attn=True)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        made: Tensor = self.network(x, time)
        return made


def diffusers_loop(network: nn.Module, data: Pictures, batch: int, precision: str) -> Callable[[], None]:
    """One step as diffusers' training examples take it: default AdamW, EMAModel, clipping at 1."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    labelled = "DiT" in type(network).__name__
    network.train()

    def step() -> None:
        index = torch.randint(len(data), (batch,))
        images = data.images[index]
        noise = torch.randn_like(images)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(images, noise, timesteps)
        extra = {"class_labels": index % 10} if labelled else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            said = network(noisy, timesteps, **extra).sample.float()
        torch.nn.functional.mse_loss(said, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    return step


class Called(nn.Module):
    """The diffusers network as denoising-diffusion-pytorch calls its own."""

    channels, out_dim, self_condition = 3, 3, False
    random_or_learned_sinusoidal_cond = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        extra = {"class_labels": time % 10} if "DiT" in type(self.network).__name__ else {}
        return self.network(x, time, **extra).sample


def _lucidrains() -> Any:
    """denoising-diffusion-pytorch; it reads and writes files by torchvision, which is not needed here."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
            sys.modules[name] = types.ModuleType(name)
        whole: Any = sys.modules["torchvision"]
        whole.transforms, whole.utils = (sys.modules[f"torchvision.{n}"] for n in ("transforms", "utils"))
    import denoising_diffusion_pytorch

    return denoising_diffusion_pytorch


def lucidrains_loop(network: nn.Module, data: Pictures, batch: int, precision: str) -> Callable[[], None]:
    """One step of denoising-diffusion-pytorch's trainer (Adam, EMA each tenth step) around that network."""
    theirs = _lucidrains()
    from ema_pytorch import EMA as TheirEMA

    whole = network.network if isinstance(network, Own) else Called(network)
    diffusion = theirs.GaussianDiffusion(whole, image_size=32, objective="pred_noise", beta_schedule="linear")
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = TheirEMA(diffusion, beta=0.995, update_every=10)
    diffusion.train()

    def step() -> None:
        index = torch.randint(len(data), (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = diffusion((data.images[index] + 1) / 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return step


def measure(
    network: nn.Module,
    rivals: dict[str, Callable[[], None]],
    data: Pictures,
    batch: int,
    steps: int,
    compile: bool,
    precision: str,
) -> dict[str, list[float]]:
    """Seconds of each step, sfumato's whole trainer and the rivals' loops taking turns."""
    labelled = isinstance(network, DiT)
    denoiser = NetworkDenoiser(network, Betas(), PredictNoise())
    conditioner = ClassLabel({"label": [*CLASSES, "none"]}) if labelled else _nothing()
    model = Model(denoiser, conditioner, Pixel())
    times: dict[str, list[float]] = {"sfumato": [], **{name: [] for name in rivals}}
    resumed = 0.0

    def observe(event: Event) -> None:
        nonlocal resumed
        if event.kind == "step":
            times["sfumato"].append(time.perf_counter() - resumed)
            for name, step in rivals.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        resumed = time.perf_counter()

    settings = Settings(
        batch=batch,
        steps=steps + WARM_UP,
        optimizer=AdamW(1e-4),
        ema=(Average(0.9999),),
        saving=Saving(every=10**6, minutes=None),
        winograd=True,
        compile=compile,
        precision=precision,
    )
    objective = Denoising(levels=Uniform(discrete=True), drop=0.0)
    with tempfile.TemporaryDirectory() as directory:
        Trainer(model, data, objective, settings, Path(directory), observe).train()
    return {name: values[WARM_UP:] for name, values in times.items()}


def measure_updates(ours: nn.Module, theirs: nn.Module, steps: int) -> dict[str, list[float]]:
    """Seconds of the optimizer and the average alone, on given gradients."""
    from diffusers.training_utils import EMAModel

    for network in (ours, theirs):
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
    mine = AdamW(1e-4).build(dict(ours.named_parameters()))
    average = EMA(dict(ours.named_parameters()), (Average(0.9999),))
    default = torch.optim.AdamW(theirs.parameters(), lr=1e-4)
    their_average = EMAModel(theirs.parameters(), decay=0.9999, use_ema_warmup=True)

    def our_update() -> None:
        set_rate(mine, 1e-4)
        mine.step()
        average.update(8)

    def their_update() -> None:
        default.step()
        their_average.step(theirs.parameters())

    times: dict[str, list[float]] = {"sfumato": [], "diffusers": []}
    for repeat in range(steps + WARM_UP):
        for name, update in (("sfumato", our_update), ("diffusers", their_update)):
            start = time.perf_counter()
            update()
            if repeat >= WARM_UP:
                times[name].append(time.perf_counter() - start)
    return times


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the paired ratios theirs / ours, with the quartiles."""
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    low, middle, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
    return f"{middle:.2f} x ({low:.2f}-{high:.2f})"


def rows_of(
    title: str, kind: str, times: dict[str, list[float]], batch: int, sizes: dict[str, int]
) -> list[str]:
    """Lines of the table: images a second, spread, and how much longer a step takes than sfumato's."""
    rows = []
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values) * 1e3:.0f}-{max(values) * 1e3:.0f}"
        ratio = "1" if name == "sfumato" else ratio_of(times["sfumato"], values)
        told = f"**sfumato, {kind}**" if name == "sfumato" else name
        rows.append(
            f"| {title} | {told} | {sizes[name] / 1e6:.2f} M | {batch / middle:.1f} | {middle * 1e3:.0f} | "
            f"{spread} | {ratio} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--unet-batch", type=int, default=16)
    parser.add_argument("--dit-batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="1 is least disturbed by whatever else runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "training_speed.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data = Pictures(512)
    steps, updates, missing = [], [], ""
    cases: tuple[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module] | None, int, int], ...] = (
        ("U-Net", our_unet, their_unet, arguments.unet_batch, arguments.steps),
        # A DiT's steps are short, and one of them says little.
        ("DiT", our_dit, their_dit, arguments.dit_batch, 4 * arguments.steps),
        ("their own U-Net", Own, None, arguments.unet_batch, arguments.steps),
    )
    kinds = ["float32", *["bf16"] * multiplies_bf16(torch.device("cpu"))]
    for title, make, make_theirs, batch, count in cases:
        for kind in kinds:
            loops = {"denoising-diffusion-pytorch": lucidrains_loop, "diffusers": diffusers_loop}
            if make_theirs is None:
                del loops["diffusers"]
            rivals, sizes = {}, {}
            # Beside sfumato's in bf16 also the loop as it comes.
            for name, loop in loops.items():
                for other in dict.fromkeys(("float32", kind)):
                    try:
                        theirs, row = (make_theirs or make)(), f"{name}, {other}"
                        rivals[row], sizes[row] = loop(theirs, data, batch, other), _count(theirs)
                    except ImportError as error:
                        missing = f"\n{name} was not measured: {error} (pip install it to add its rows).\n"
            if not rivals:
                continue
            ours = make()
            # Compiled in bf16, the gradients of the last network are not finite.
            compile = (title, kind) != ("their own U-Net", "bf16")
            times = measure(ours, rivals, data, batch, count, compile, kind)
            sizes["sfumato"] = _count(ours)
            steps += rows_of(title, kind, times, batch, sizes)
        if make_theirs is not None:
            times = measure_updates(make(), make_theirs(), 3 * arguments.steps)
            medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
            ratio = ratio_of(times["sfumato"], times["diffusers"])
            updates.append(f"| {title} | {medians['sfumato']:.0f} | {medians['diffusers']:.0f} | {ratio} |")
    page = PAGE.format(
        threads=torch.get_num_threads(),
        steps=arguments.steps,
        warm_up=WARM_UP,
        machine=machine(),
        torch=torch.__version__,
        rows="\n".join(steps),
        missing=missing,
        updates="\n".join(updates),
    )
    arguments.out.write_text(page)
    print(page)


def _nothing() -> Any:
    from sfumato.conditioners.nothing import Nothing

    return Nothing()


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
