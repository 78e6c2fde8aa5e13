"""What a network should predict, and how levels are weighed, where pictures and steps are few.

The depth-to-scene run of examples/ for 1,000 steps (four minutes of one core each), told to predict one thing
or another; measured are the error of x0 at fixed levels and the grain of grounds, which should be plain.

    python benchmarks/predictions.py                # docs/predictions.md and its picture
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fashion import ROOT
from latent_measures import COUNT, draw, pictures, sheet, unseen_scenes
from torch import Tensor

import sfumato
from sfumato.core.noise import Noise
from sfumato.data.item import Item, collate
from sfumato.model import Model
from sfumato.training.objectives.objective import told
from sfumato.training.run import train
from sfumato.training.run_file import read

_EDM = "{name: edm, sigma_data: 0.6}"
RUNS: dict[str, tuple[str, str]] = {
    "velocity": ("velocity", "uniform"),
    "edm": (_EDM, "uniform"),
    "edm, min-SNR": (_EDM, "{name: min_snr, least: 1}"),
    "data": ("data", "uniform"),
    "data, edm's weight": ("data", _EDM),
    "data, min-SNR": ("data", "min_snr"),
    "data, min-SNR of at least 1": ("data", "{name: min_snr, least: 1}"),
}
"""Name: prediction and weight."""

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times of the flow process, the share of noise."""


def trained(name: str, root: Path, steps: int) -> Model:
    """The model of a run, from its folder if it is done."""
    folder = root / name.replace(", ", "_").replace(" ", "_").replace("'", "")
    if not (folder / "model" / "model.json").exists():
        prediction, weight = RUNS[name]
        said = [f"model.prediction={prediction}", f"objective.weight={weight}", f"steps={steps}"]
        always = ["sample_every=0", "workers=1", "precision=bf16", "saving.minutes=5"]
        run = read(ROOT / "examples" / "train_depth.yaml", [*said, *always])
        train(run, folder, lambda event: print(name, event.step, event.loss, file=sys.stderr, end="\r"))
    return sfumato.load(folder)


def measured(model: Model, items: list[Item]) -> tuple[dict[str, float], Tensor]:
    """Root mean square errors of x0 by level, the grain on the ground of drawn scenes, and these."""
    row, count = {}, len(items)
    batch = collate(items)
    x = model.space.encode(batch.image, Noise(range(count)))
    for t in LEVELS:
        level = model.process(torch.full((count,), t, dtype=torch.float64)).like(x)
        noisy = level.alpha * x + level.sigma * Noise(range(count), 1).randn_like(x)
        with torch.no_grad():
            x0 = model.denoiser(noisy.float(), level, told(model, batch)).x0
        row[f"t = {t}"] = float((x0 - x).square().mean().sqrt())
    asked = {key: [item.inputs[key] for item in items] for key in ("boxes", "depth")}
    made = draw(model, count, sampler={"name": "dpm_solver_pp", "order": 2}, steps=24, guidance=1.0, **asked)
    return row | {"grain": grain(made, items)}, made


def grain(images: Tensor, items: list[Item]) -> float:
    """Root mean square of what differs from the mean of 5 x 5 pixels, where all of them are ground."""
    plain = F.max_pool2d(torch.stack([item.inputs["depth"] for item in items])[:, None], 5, 1) == 0
    rest = images[..., 2:-2, 2:-2] - F.avg_pool2d(images, 5, 1)
    return float(rest[plain.expand_as(rest)].square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--root", type=Path, default=Path("runs/predictions"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    items = unseen_scenes(2, 4)[: COUNT // 2]
    real = pictures(items)
    rows: dict[str, dict[str, Any]] = {}
    columns = []
    for name in RUNS:
        rows[name], made = measured(trained(name, arguments.root, arguments.steps), items)
        columns.append(made[:12])
        print(name, rows[name], file=sys.stderr)
    rows["real"] = {"grain": grain(real, items)}
    sheet([*columns, real[:12]], list(rows), arguments.out / "predictions.png", label=210)
    keys = [f"t = {t}" for t in LEVELS] + ["grain"]
    lines = [f"| | {' | '.join(keys)} |", f"|---|{'---|' * len(keys)}"]
    for name, row in rows.items():
        cells = [f"{row[key]:.3f}" if key in row else "" for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (arguments.out / "predictions.md").write_text(_PAGE.format(steps=arguments.steps, table="\n".join(lines)))


_PAGE = """# What to predict, of few pictures

Depth to scene at 32 pixels (`examples/train_depth.yaml`), {steps:,} steps of 16 pictures in 16 bits on one
CPU core: the same network, pictures and noise; what it outputs and how levels are weighed differs. Root
mean square error of x0 by the share of noise t, pictures in [-1, 1], and the grain of drawn grounds: what
differs from the mean of 5 x 5 pixels where there is nothing but ground. One run each, so
small differences say nothing. Written by `python benchmarks/predictions.py`.

{table}

![Drawn scenes, a row for each](predictions.png)

A network that outputs the noise, or a mix with it as EDM's, must carry every pixel's noise through its layers
to take it away again; that is learnt late, and until then a part of it stays as grain. One that outputs the
data need not (Li & He 2025, "Back to Basics: Let Denoising Generative Models Denoise", arXiv:2511.13720, find
so of large patches). Next to the data, at t = 0.1, the others are ahead. A weight that is nowhere small
learns all levels.
"""


if __name__ == "__main__":
    main()
