"""The classical half of the field on one data set: eight ways to train, one network, one budget.

Trains each model of MODELS on Fashion-MNIST for the same number of pictures, draws samples as its authors do,
and compares them with the test split; then walks one model with many samplers and numbers of steps. Every
result is kept beside the run it came from, so that the work can be cut up and taken up again.

    python benchmarks/zoo.py                          # all of it, then docs/zoo.md and docs/zoo.png
    python benchmarks/zoo.py --only ve,ncsnv2         # a part; the page is written when all parts are there
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fashion import ROOT, batches, classifier, pictures
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import sfumato
from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.level import Level
from sfumato.data.idx import FASHION, Idx
from sfumato.data.item import collate
from sfumato.generation.generate import generate
from sfumato.generation.images import to_image
from sfumato.metrics.accuracy import accuracy
from sfumato.metrics.evaluate import embed
from sfumato.metrics.features import EfficientNetLite0Features
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kid import kid
from sfumato.metrics.likelihood import likelihood
from sfumato.metrics.precision_recall import precision_recall
from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

NOISE = {"model.prediction": "noise", "objective.weight": "uniform"}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddpm": (
        "DDPM: linear betas, noise, 1000 indices",
        {"model.process": "betas", **NOISE, "objective.levels": {"name": "uniform", "discrete": True}},
        {"sampler": "ancestral", "times": "trailing", "steps": 250},
    ),
    "iddpm": (
        "improved DDPM: cosine betas, learned variance, hybrid loss",
        {
            **{"model.process": {"name": "betas", "schedule": "cosine"}, **NOISE},
            **{"model.learned_range": True, "model.network.out_channels": 8},
            "objective.levels": {"name": "uniform", "discrete": True},
        },
        {"sampler": {"name": "ancestral", "variance": "learned"}, "times": "trailing", "steps": 250},
    ),
    "ncsnv2": (
        "NCSNv2: a ladder of noise, score over sigma, annealed Langevin dynamics (technique 4's steps)",
        {"model.process": {"name": "ncsn", "sigma_max": 40.0, "steps": 100}, **NOISE},
        {"sampler": {"name": "langevin", "snr": 0.24, "steps": 5}, "times": "trailing", "steps": 100},
    ),
    "ve": (
        "VE-SDE, predictor-corrector",
        {"model.process": {"name": "ve", "sigma_max": 40.0}, **NOISE},
        {"sampler": "predictor_corrector", "times": "uniform", "steps": 125},
    ),
    "vp": (
        "VP-SDE, Euler-Maruyama",
        {"model.process": "vp", **NOISE},
        {"sampler": "euler_maruyama", "times": "uniform", "steps": 250},
    ),
    "sub_vp": (
        "sub-VP-SDE, Euler-Maruyama",
        {"model.process": "sub_vp", **NOISE},
        {"sampler": "euler_maruyama", "times": "uniform", "steps": 250},
    ),
    "edm": (
        "EDM: preconditioning, log-normal levels, Heun",
        {
            "model.process": "edm",
            "model.prediction": {"name": "edm", "sigma_data": 0.6},
            "objective.levels": {"name": "log_normal"},
            "objective.weight": {"name": "edm", "sigma_data": 0.6},
        },
        {"sampler": "heun", "times": "karras", "steps": 18},
    ),
    "flow": (
        "flow matching, logit-normal times, Heun along the lines",
        {
            "model.process": "flow",
            "model.prediction": "flow",
            "objective.levels": {"name": "logit_normal"},
        },
        {"sampler": {"name": "heun", "straight": True}, "times": "uniform", "steps": 18},
    ),
}
"""Name: what it is, how it differs from examples/train_fashion.yaml, how its authors sample it."""

SOLVERS = {
    "euler": "euler",
    "heun": "heun",
    "dpm2": "dpm2",
    "lms": "lms",
    "dpm_solver_pp 2": {"name": "dpm_solver_pp", "order": 2},
    "dpm_solver_pp 3": {"name": "dpm_solver_pp", "order": 3},
    "unipc": "unipc",
    "euler_maruyama": "euler_maruyama",
    "ancestral": "ancestral",
}
COUNTS = (5, 10, 20)
BATCH = 16


def trained(name: str, steps: int, root: Path) -> Model:
    """The model, from its run if that is done."""
    folder = root / name
    if not (folder / "model" / "model.json").exists():
        changes = [f"{key}={json.dumps(value)}" for key, value in MODELS[name][1].items()]
        budget = [
            "minutes=null",
            f"steps={steps}",
            f"batch={BATCH}",
            "saving.minutes=5",
            "sample_every=1000000",
        ]
        run = read(ROOT / "examples" / "train_fashion.yaml", [*changes, *budget])
        train(run, folder, lambda event: print(name, event.step, file=sys.stderr, end="\r"))
    return sfumato.load(folder)


class Counted:
    """A guidance that changes nothing and counts the calls of the network."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        def counted(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            self.calls += 1
            return denoiser(x, level, condition)

        return counted


def draw(
    model: Model, walk: dict[str, Any], count: int, guidance: Sequence[dict[str, Any]] = ()
) -> tuple[Tensor, int, float]:
    """Pictures of the classes in turn, estimates a picture, seconds a picture."""
    counted, labels, start = Counted(), [FASHION[i % 10] for i in range(count)], time.perf_counter()
    batch = {"seeds": list(range(count)), "batch": min(count, 50)}
    settings = {**walk, **batch, "guidance": [*guidance, counted]}
    images = generate(model, label=labels, **settings).tensor
    return images, counted.calls // -(-count // 50), (time.perf_counter() - start) / count


class Judge:
    """Compares pictures with real ones."""

    def __init__(self, count: int, root: Path) -> None:
        self.features, self.count = EfficientNetLite0Features(size=96), count
        self.network = classifier(root / "classifier.pt")
        self.real = embed(batches(pictures(Idx(size=32, split="test"), count)), self.features)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> dict[str, list[float]]:
        """Measures with their 95 % intervals; labels are the classes in turn if not said."""
        found, name = embed(batches(images), self.features), self.features.name
        wanted = (torch.arange(len(images)) % 10 if labels is None else labels).split(100)
        precision, recall = precision_recall(found, self.real, features=name)[:2]
        measures = {
            "class accuracy": accuracy(batches(images), wanted, self.network, name="small CNN"),
            "frechet": frechet(found, self.real, features=name),
            "kid": kid(found, self.real, features=name),
            "precision": precision,
            "recall": recall,
        }
        return {key: [each.value, each.low, each.high] for key, each in measures.items()}


def bits(model: Model, count: int) -> list[float]:
    """Exact bits a dimension of test pictures, by the probability-flow ODE."""
    data = Idx(size=32, split="test")
    found = likelihood(model, (collate([data[i] for i in range(k, k + 16)]) for k in range(0, count, 16)))
    return [found.value, found.low, found.high]


def measure(name: str, model: Model, judge: Judge, root: Path) -> dict[str, Any]:
    """A row of the table, kept in a file beside the run as its parts come; samples too.

    What a model that predicts noise says of the data is clipped to their range, and also taken as it is.
    """
    file = root / name / "row.json"
    row = json.loads(file.read_text()) if file.exists() else {}
    ways = {"plain": []} if name in ("edm", "flow") else {"clipped": ["threshold"], "plain": []}
    for way, guidance in ways.items():
        if way not in row:
            images, calls, seconds = draw(model, MODELS[name][2], judge.count, guidance)
            torch.save(images[:80].clone(), root / name / f"{way}.pt")
            row[way] = {**judge(images), "evaluations": calls, "seconds": seconds}
            file.write_text(json.dumps(row))
    if "bits" not in row:
        row["bits"] = bits(model, 64)
        file.write_text(json.dumps(row))
    print(name, row, file=sys.stderr)
    return row


def solvers(model: Model, judge: Judge, root: Path) -> dict[str, Any]:
    """KID and calls by sampler and steps, for one model."""
    file = root / "solvers.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for (name, sampler), steps in itertools.product(SOLVERS.items(), COUNTS):
        key = f"{name}/{steps}"
        if key not in found:
            images, calls, _ = draw(
                model, {"sampler": sampler, "times": "karras", "steps": steps}, judge.count
            )
            found[key] = {**judge(images), "evaluations": calls}
            file.write_text(json.dumps(found))
            print(key, found[key], file=sys.stderr)
    return found


def sheet(root: Path, path: Path) -> None:
    """One row of pictures a class and model: two samples of each class."""
    side, label = 56, 100
    page = Image.new("RGB", (label + 20 * side, len(MODELS) * side), "black")
    canvas, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for number, name in enumerate(MODELS):
        canvas.text((8, number * side + side / 2), name, "white", font, "lm")
        file = root / name / "clipped.pt"
        samples = torch.load(file if file.exists() else root / name / "plain.pt", weights_only=True)
        for column in range(20):
            picture = samples[column // 2 + 10 * (column % 2)]
            image = to_image(picture).resize((side, side), Image.Resampling.BICUBIC)
            page.paste(image, (label + column * side, number * side))
    page.save(path)


def cell(value: list[float]) -> str:
    return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"


def page(rows: dict[str, Any], table: dict[str, Any], floor: dict[str, Any], steps: int, count: int) -> str:
    """docs/zoo.md."""
    keys = ("class accuracy", "frechet", "kid", "precision", "recall")
    lines = []
    for name, row in rows.items():
        best = row.get("clipped", row["plain"])
        cells = [cell(best[key]) for key in keys]
        plain = f"{row['plain']['kid'][0]:.3g}" if "clipped" in row else ""
        rest = [plain, cell(row["bits"]), str(best["evaluations"]), f"{best['seconds']:.2f}"]
        lines.append(f"| {MODELS[name][0]} | {' | '.join([*cells, *rest])} |")
    real = f"| real test pictures, others | {' | '.join(cell(floor[key]) for key in keys)} | | | | |"
    grid = [
        f"| {name} | "
        + " | ".join(
            f"{table[f'{name}/{n}']['kid'][0]:.3f} ({table[f'{name}/{n}']['evaluations']})" for n in COUNTS
        )
        + " |"
        for name in SOLVERS
    ]
    return f"""# A zoo of processes

Eight models of one network (2.7 M parameters, class-conditional), each trained on {steps * BATCH:,} pictures
of Fashion-MNIST ({steps:,} steps of {BATCH}) and walked as its authors do, without guidance. {count} samples
against as many pictures of the test split, 95 % intervals in brackets; calls are of the network; bits a
dimension are exact likelihoods of 64 test pictures by the probability-flow ODE, uniformly dequantised,
padding included. Seconds are those a picture on one thread of a CPU. The feature network is
EfficientNet-lite0, so the distances are not FID numbers. Written by `python benchmarks/zoo.py`.

What the models that predict noise say of the data is clipped to their range; the column "KID, unclipped" is
without. DDPM's authors clip, those of score-based models do not, after a thousand times this training: an
error of .15 in the noise is one of 6 in the data where sigma/alpha is 40, and neither a stochastic walk nor
Langevin's finds back from there. A model that predicts the data, or EDM's mixture, makes no such error.

How the numbers order, beside the literature. As there: improved DDPM is ahead of DDPM in likelihood and in
distance, sub-VP ahead of VP in likelihood and VE with its corrector ahead of both in distance, Langevin's
dynamics on a ladder behind them all. Not as there: EDM stands behind DDPM in distance, if with a seventh of
its calls, and flow matching, ahead of it, is last in likelihood. Both are matters of where training puts its
few levels. Log-normal levels (EDM, median sigma .3) spend them near the data, which buys
likelihood and leaves the shape of a picture, settled at large sigma, half learnt: its pictures are sharp and
wrong. Logit-normal times (flow, median sigma/alpha 1) do the reverse: the best class accuracy, and almost no
training at the small levels that bits a dimension are made of. At 233,776 pictures in place of
{steps * BATCH:,} ([docs/fashion.md](fashion.md)) the EDM model has .84 of class accuracy and .29 of KID.

| model | class accuracy | Fréchet | KID | precision | recall | KID, unclipped | bits/dim | calls | seconds |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join([real, *lines])}

![Two samples of each class from each model](zoo.png)

## Samplers and steps, one model

KID of the EDM model by sampler and number of steps on Karras' times, evaluations of the network in brackets.
Differences below .06 are within the intervals. Second order is the knee: order 3 buys nothing where a step
is longer than .8 in log-SNR (it then falls back to 2), and Heun's two estimates a step want twice the steps.
The reverse SDE by Euler-Maruyama needs hundreds.

| sampler | {" | ".join(f"{n} steps" for n in COUNTS)} |
|---|{"---|" * len(COUNTS)}
{chr(10).join(grid)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*MODELS, "solvers"])
    parser.add_argument("--root", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    root, only = arguments.root, arguments.only
    root.mkdir(parents=True, exist_ok=True)
    models = {name: trained(name, arguments.steps, root) for name in MODELS if name in only}
    judge = Judge(arguments.count, root)
    for name, model in models.items():
        measure(name, model, judge, root)
    if "solvers" in only:
        solvers(trained("edm", arguments.steps, root), judge, root)
    if all((root / name / "row.json").exists() for name in MODELS) and (root / "solvers.json").exists():
        rows = {name: json.loads((root / name / "row.json").read_text()) for name in MODELS}
        test, others = Idx(size=32, split="test"), slice(judge.count, 2 * judge.count)
        floor = judge(pictures(test, judge.count, judge.count), test.numbers[others].long())
        table = json.loads((root / "solvers.json").read_text())
        text = page(rows, table, floor, arguments.steps, judge.count)
        (arguments.out / "zoo.md").write_text(text)
        sheet(root, arguments.out / "zoo.png")


if __name__ == "__main__":
    main()
