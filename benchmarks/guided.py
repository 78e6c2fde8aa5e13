"""Classifier guidance beside classifier-free guidance: what accuracy costs in variety.

Takes the model of benchmarks/fashion.py and a noisy classifier, trains them where they are not yet, and
measures class accuracy, precision and recall of both guidances along their scales.

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
from zoo import Judge, draw

import sfumato
from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

FREE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
STEERED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
WALK = {"sampler": {"name": "dpm_solver_pp", "order": 2}, "times": "karras", "steps": 16}


def trained(example: str, minutes: float, folder: Path) -> Model:
    """The model of an example's run file, from its run if that is done."""
    if not (folder / "model" / "model.json").exists():
        run = read(ROOT / "examples" / example, [f"minutes={minutes}"])
        train(run, folder, lambda event: print(example, event.step, file=sys.stderr, end="\r"))
    return sfumato.load(folder)


def measure(model: Model, judge: Judge, steering: Model, file: Path) -> dict[str, Any]:
    """Measures by kind of guidance and scale, kept in a file as they come."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    plain = {"name": "classifier_free", "scale": 0.0}
    points = [("classifier-free", scale, [{**plain, "scale": scale}]) for scale in FREE]
    for scale in STEERED:
        steer = {"name": "classifier", "scale": scale, "model": steering}
        points.append(("classifier", scale, [plain, steer]))
    for kind, scale, guidance in points:
        key = f"{kind}/{scale:g}"
        if key not in found:
            found[key] = judge(draw(model, WALK, judge.count, guidance)[0])
            file.write_text(json.dumps(found))
            print(key, found[key], file=sys.stderr)
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Accuracy against the scale, and recall and precision beside it; a curve a guidance."""
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for panel, key in zip(panels, ("class accuracy", "recall", "precision"), strict=True):
        for kind, scales, colour in (
            ("classifier-free", FREE, "#c0392b"),
            ("classifier", STEERED, "#2456a6"),
        ):
            values = [found[f"{kind}/{scale:g}"][key] for scale in scales]
            panel.plot(scales, [v[0] for v in values], marker="o", color=colour, label=f"{kind} guidance")
            low, high = [v[1] for v in values], [v[2] for v in values]
            panel.fill_between(scales, low, high, color=colour, alpha=0.15)
        panel.set(title=key, xlabel="scale", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share")
    panels[0].legend(loc="lower right")
    figure.savefig(path, dpi=110)


def page(found: dict[str, Any], count: int, minutes: float) -> str:
    """docs/guided.md."""
    keys = ("class accuracy", "precision", "recall", "kid")
    rows = []
    for key, row in found.items():
        kind, _, scale = key.partition("/")
        cells = " | ".join(f"{row[k][0]:.3f} ({row[k][1]:.3f} to {row[k][2]:.3f})" for k in keys)
        rows.append(f"| {kind} | {scale} | {cells} |")
    return f"""# What guidance buys and what it costs

The model of [docs/fashion.md](fashion.md), {WALK["steps"]} steps of DPM-Solver++ 2M, {count} pictures a
point, judged against the test split of Fashion-MNIST by a classifier that saw clean training pictures only.
Classifier-free guidance moves away from the model's own unconditional estimate (0 is the unconditional
model, 1 the conditional one); classifier guidance steers the unconditional estimate by the gradient of a
noisy classifier, trained for {minutes:g} minutes of one core. A step of the first asks the network twice,
one of the second once, and the classifier for its gradient. 95 % intervals in brackets. Written by
`python benchmarks/guided.py`.

![Accuracy rises, recall falls](guided.png)

| guidance | scale | class accuracy | precision | recall | KID |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4, help="of training of the noisy classifier")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--run", type=Path, default=Path("runs/fashion"), help="as of benchmarks/fashion.py")
    parser.add_argument("--root", type=Path, default=Path("runs/guided"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    root = arguments.root
    model = trained("train_fashion.yaml", 30, arguments.run)
    steering = trained("train_fashion_classifier.yaml", arguments.minutes, root / "classifier")
    judge = Judge(arguments.count, root)
    found = measure(model, judge, steering, root / "guided.json")
    plot(found, arguments.out / "guided.png")
    (arguments.out / "guided.md").write_text(page(found, arguments.count, arguments.minutes))


if __name__ == "__main__":
    main()
