"""Controls, really trained on the embedded model: do pictures follow the hint, and still the prompt.

Trains every run that is not there yet (a quarter of an hour of two cores each), draws held-out concepts and
new scenes with and without the control from the same noise, and keeps the numbers beside the runs.

    python benchmarks/control.py                        # all of it, then docs/control.md and its pictures
    python benchmarks/control.py --only canny,alpha     # a part; the page is written when all parts are there
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import control_measures as measures
import emoji_measures
import torch
from fashion import ROOT
from latent_measures import draw, interval, pictures, sheet
from torch import Tensor

import sfumato
from sfumato.data.emoji import Emoji
from sfumato.data.hinted import Hinted
from sfumato.data.item import Dataset, Item
from sfumato.data.scenes import Scenes
from sfumato.metrics.clip_score import clip_score
from sfumato.model import Model
from sfumato.registry import build
from sfumato.training.run import train
from sfumato.training.run_file import read

COUNT = 100
"""Pictures a measure is taken of."""
_NEW = 1 << 29
"""The seed of scenes that no model is trained on."""
_SCENES: dict[str, Any] = {
    "size": 64,
    "fewest": 2,
    "most": 3,
    "ground": "white",
    "apart": True,
    "fixed": True,
}


class Kind(NamedTuple):
    """A kind of control.

    Args:
        detector: what makes its hints.
        of: what the detector is given, as `hinted` says.
        score: (asked, made) → a number for each picture, 0 to 1.
        scenes: whether it is of composed scenes.
    """

    detector: dict[str, Any]
    of: str
    score: Callable[[Any, Tensor], list[float]]
    scenes: bool = False


KINDS = {
    "canny": Kind({"name": "canny"}, "", measures.edge_scores),
    "scribble": Kind({"name": "scribble"}, "", measures.edge_scores),
    "alpha": Kind({"name": "alpha"}, "alpha", measures.mask_scores),
    "keypoints": Kind({"name": "keypoints"}, "boxes", measures.centre_scores, True),
}
AMOUNTS = {"1,000 pictures": 1000, "all pictures": 0}


def trained(kind: str, amount: str, root: Path, changes: list[str]) -> Model:
    """The model with a control, from its folder if it is done."""
    folder = root / f"{kind}_{AMOUNTS[amount] or 'all'}"
    if not (folder / "model" / "model.json").exists():
        told, count = KINDS[kind], AMOUNTS[amount]
        data: dict[str, Any] = {"name": "emoji", "size": 64, "wording": "varied"}
        if told.scenes:
            data = {"name": "scenes", "count": 10000, "wording": "varied", **_SCENES}
        hinted = {"name": "hinted", "data": data, "detector": told.detector, "of": told.of}
        run_data = {"name": "part", "data": hinted, "count": count} if count else hinted
        said = [f"data={json.dumps(run_data)}", "held_out=null", "sample_every=0", *changes]
        run = read(ROOT / "examples" / "train_control.yaml", said)
        train(
            run, folder, lambda event: print(folder.name, event.step, event.loss, file=sys.stderr, end="\r")
        )
    return sfumato.load(folder)


def measured(kind: str, root: Path, changes: list[str]) -> dict[str, Any]:
    """How well pictures follow the hints of a kind, and their prompts, with and without the control."""
    told, judge = KINDS[kind], emoji_measures.judge_of(sfumato.load("emoji_judge"))
    items, prompts = _asked(told)
    hints = torch.stack([item.inputs["hint"] for item in items])
    ways = {"uncontrolled": draw(sfumato.load("emoji"), len(items), prompt=prompts)}
    for amount in AMOUNTS:
        model = trained(kind, amount, root, changes)
        ways[amount] = draw(model, len(items), prompt=prompts, hint=list(hints))
        if amount == "all pictures":
            # What the hint alone says, where the prompt says nothing.
            ways["no prompt"] = draw(model, len(items), prompt="", hint=list(hints), guidance=1.0)
    ways["real pictures"] = pictures(items)
    asked: Any = hints[:, :1]
    if told.scenes:
        asked = [[_centre(each["box"]) for each in item.inputs["boxes"]] for item in items]
    rows: dict[str, Any] = {}
    for name, made in ways.items():
        rows[name] = {"follows": measures.mean(told.score(asked, made))}
        rows[name]["clip score"] = interval(clip_score(judge, made, prompts))
    shown = slice(0, 12)
    sheet([hints[shown], *(made[shown] for made in ways.values())], ["hint", *ways], root / f"{kind}.png")
    return rows


def _asked(kind: Kind) -> tuple[list[Item], list[str]]:
    """Held-out concepts, or new scenes, with their hints, and what is asked for."""
    plain: Dataset = (
        Scenes(count=COUNT, **_SCENES | {"fixed": False}) if kind.scenes else Emoji(split="held_out")
    )
    data = Hinted(plain, build("detector", kind.detector), of=kind.of)
    count = min(COUNT, len(data))
    items = [data.load(i * len(data) // count, _NEW) for i in range(count)]
    prompts = [item.inputs["caption"] for item in items]
    if isinstance(plain, Emoji):
        found = [plain.drawings[i * len(data) // count] for i in range(count)]
        prompts = [f"{d.article} {d.concept}, {d.style}".strip() for d in found]
    return items, prompts


def _centre(box: list[float]) -> tuple[float, float]:
    left, top, width, height = box
    return left + width / 2, top + height / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument(
        "--set", action="append", default=[], help="for all runs, such as steps=20 to try it out"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/control"))
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    for kind in arguments.only:
        file = arguments.root / f"{kind}.json"
        if not file.exists():
            file.write_text(json.dumps(measured(kind, arguments.root, arguments.set), indent=1))
        print(kind, file.read_text())


if __name__ == "__main__":
    main()
