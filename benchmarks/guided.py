"""Classifier guidance beside classifier-free guidance: what accuracy costs in variety.

Takes the EDM model of benchmarks/zoo.py and a noisy classifier, trains them where they are
not yet, and measures class accuracy, precision and recall of both guidances along their scales.

    python benchmarks/guided.py         # writes docs/guided.md and docs/guided.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fashion import ROOT
from matplotlib import pyplot
from zoo import Judge, draw, trained

from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

FREE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
STEERED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
WALK = {"sampler": {"name": "dpm_solver_pp", "order": 2}, "times": "karras", "steps": 16}


def noisy_classifier(folder: Path, minutes: float) -> Path:
    """The folder of the noisy classifier, trained if need be."""
    if not (folder / "model" / "model.json").exists():
        run = read(ROOT / "examples" / "train_fashion_classifier.yaml", [f"minutes={minutes}"])
        train(run, folder, lambda event: print("classifier", event.step, file=sys.stderr, end="\r"))
    return folder


def measure(model: Model, judge: Judge, steering: Path, file: Path) -> dict[str, Any]:
    """Measures by kind of guidance and scale, kept in a file as they come."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    plain = {"name": "classifier_free", "scale": 0.0}
    points = [("classifier-free", scale, [{**plain, "scale": scale}]) for scale in FREE]
    for scale in STEERED:
        steer = {"name": "classifier", "scale": scale, "model": str(steering)}
        points.append(("classifier", scale, [plain, steer]))
    for kind, scale, guidance in points:
        key = f"{kind}/{scale:g}"
        if key not in found:
            images, _, seconds = draw(model, WALK, judge.count, guidance)
            found[key] = {**judge(images), "seconds": seconds}
            file.write_text(json.dumps(found))
            print(key, found[key], file=sys.stderr)
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Accuracy and recall against the scale, one panel a guidance, one pair of curves each."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, (kind, scales) in zip(
        panels, (("classifier-free", FREE), ("classifier", STEERED)), strict=True
    ):
        for key, colour in (("class accuracy", "#c0392b"), ("precision", "#888888"), ("recall", "#2456a6")):
            values = [found[f"{kind}/{scale:g}"][key] for scale in scales]
            panel.plot(scales, [v[0] for v in values], marker="o", color=colour, label=key)
            panel.fill_between(
                scales, [v[1] for v in values], [v[2] for v in values], color=colour, alpha=0.15
            )
        panel.set(title=f"{kind} guidance", xlabel="scale", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    panels[1].set_title("classifier guidance of the unconditional model")
    panels[0].set_ylabel("share")
    panels[0].legend(loc="center right")
    figure.savefig(path, dpi=110)


def page(found: dict[str, Any], count: int) -> str:
    """docs/guided.md."""
    keys = ("class accuracy", "precision", "recall", "kid")
    rows = []
    for key, row in found.items():
        kind, _, scale = key.partition("/")
        cells = " | ".join(f"{row[k][0]:.3f} ({row[k][1]:.3f} to {row[k][2]:.3f})" for k in keys)
        rows.append(f"| {kind} | {scale} | {cells} | {row['seconds']:.2f} |")
    return f"""# What guidance buys and what it costs

The EDM model of [the zoo](zoo.md), {WALK["steps"]} steps of DPM-Solver++ 2M, {count} pictures a point, judged
against the test split of Fashion-MNIST by a classifier that saw clean training pictures only.
Classifier-free guidance moves away from the model's own unconditional estimate (0 is the unconditional model,
1 the conditional one); classifier guidance steers the unconditional estimate by the gradient of a noisy
classifier. 95 % intervals in brackets; seconds a picture on one thread. Written by `python
benchmarks/guided.py`.

![Accuracy rises, recall falls](guided.png)

| guidance | scale | class accuracy | precision | recall | KID | seconds |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4, help="of training of the noisy classifier")
    parser.add_argument("--steps", type=int, default=2400, help="of training of the model, as in zoo.py")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--root", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    steering = noisy_classifier(arguments.root / "classifier", arguments.minutes)
    model = trained("edm", arguments.steps, arguments.root)
    judge = Judge(arguments.count, arguments.root)
    found = measure(model, judge, steering, arguments.root / "guided.json")
    plot(found, arguments.out / "guided.png")
    (arguments.out / "guided.md").write_text(page(found, arguments.count))


if __name__ == "__main__":
    main()
