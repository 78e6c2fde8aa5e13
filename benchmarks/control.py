"""Controls, really trained on the embedded model: do pictures follow the hint, and still the prompt.

Trains every run that is not there yet (a quarter of an hour of one core each, edges and boxes twice that),
draws held-out concepts and new scenes with and without the control from the same noise, and writes
docs/control.md, its figures (docs/control.json) and its pictures.

    python benchmarks/control.py                                   # all of it
    python benchmarks/control.py --only canny --amounts 1000       # a part; the others stay as they were
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import control_measures as measures
import emoji_measures
import torch
from fashion import ROOT
from latent_measures import draw, interval, mean, outlined, pictures, sheet
from latent_page import table
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
    "label": "concept",
}


class Kind(NamedTuple):
    """A kind of control.

    Args:
        words: what its page says of it.
        score: (asked, made) → a number for each picture, 0 to 1.
        detector: what makes its hints; none of boxes, which are told as they are.
        of: what the detector is given, as `hinted` says.
        scenes: whether it is of composed scenes.
        steps: of training, in batches of 16.
        changes: of the settings of examples/train_control.yaml.
        how: what these are, in words.
    """

    words: str
    score: Callable[[Any, Tensor], list[float]]
    detector: dict[str, Any] | None = None
    of: str = ""
    scenes: bool = False
    steps: int = 800
    changes: tuple[str, ...] = ()
    how: str = ""

    @property
    def told(self) -> str:
        """The name of what the model is told."""
        return "boxes" if self.detector is None else "hint"

    def data(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Described data with hints, of data without."""
        if self.detector is None:
            return plain
        return {"name": "hinted", "data": plain, "detector": self.detector, "of": self.of}


_EDGES = (
    "F1 of what is asked for and the picture's edges, at the tolerance of the Berkeley benchmark, which is "
    "the very pixel at this size."
)
_UNLOCKED = ('controls={"hint": {"name": "controlnet", "learns": "decoder"}}',)
_WITH = ", with the network's decoder"
KINDS = {
    "canny": Kind(_EDGES, measures.edge_scores, {"name": "canny"}, steps=1600, changes=_UNLOCKED, how=_WITH),
    "scribble": Kind(
        "F1 of the strokes asked for, thinned to lines, and the lines that the same detector (HED) "
        "finds in the picture, to the very pixel.",
        measures.stroke_scores,
        {"name": "scribble"},
        steps=1350,
        changes=_UNLOCKED,
        how=f"{_WITH}, measured in two legs: 800, and 550 more",
    ),
    "alpha": Kind(
        "IoU of the mask asked for and what is no ground.", measures.mask_scores, {"name": "alpha"}, "alpha"
    ),
    "keypoints": Kind(
        "New scenes of two or three things, told where their centres are: the share of centres that a thing "
        "of its own stands on.",
        measures.centre_scores,
        {"name": "keypoints"},
        "boxes",
        True,
        steps=1350,
        changes=(*_UNLOCKED, "objective.drop=0.25"),
        how=f"{_WITH}, a quarter of the prompts not said; from 1,000 scenes 800 steps",
    ),
    "boxes": Kind(
        "New scenes, told boxes and what stands in them (GLIGEN): IoU of each box with the nearest box "
        "around a thing.",
        measures.box_scores,
        scenes=True,
        steps=2000,
        # Boxes are forgotten with the prompt: half of the time would be half of what is learnt.
        changes=("objective.drop=0.1",),
        how=", a tenth of the prompts not said",
    ),
}
AMOUNTS = {"1000": "1,000 pictures", "all": "all pictures"}
_HINT = ", hint guided"
# Heeded on one side of guidance alone, what the hint adds is guided, too.
_GUIDED = [{"name": "control_scale", "conditional": True}, {"name": "classifier_free", "scale": 2.0}]
_ORDER = (
    "uncontrolled",
    *(amount + way for amount in AMOUNTS.values() for way in ("", _HINT)),
    "no prompt",
    "real pictures",
    "another's real picture",
)


def trained(kind: str, amount: str, root: Path, changes: list[str]) -> Model:
    """The model with a control, from its folder if it is done."""
    folder = root / f"{kind}_{amount}"
    if not (folder / "model" / "model.json").exists():
        told, count = KINDS[kind], 0 if amount == "all" else int(amount)
        plain: dict[str, Any] = {"name": "emoji", "size": 64, "wording": "varied"}
        if told.scenes:
            plain = {"name": "scenes", "count": 10000, "wording": "varied", **_SCENES}
        plain = {"name": "part", "data": plain, "count": count} if count else plain
        data = told.data(plain if told.scenes else {"name": "moved", "data": plain})
        control = {told.told: "gligen" if told.told == "boxes" else "controlnet"}
        said = [f"data={json.dumps(data)}", f"controls={json.dumps(control)}", "held_out=null"]
        said.append(f"validation.shuffled=[{told.told}]")
        run = read(
            ROOT / "examples" / "train_control.yaml",
            [*said, *told.changes, f"steps={told.steps}", "sample_every=0", *changes],
        )
        train(
            run, folder, lambda event: print(folder.name, event.step, event.loss, file=sys.stderr, end="\r")
        )
    return sfumato.load(folder)


def measured(
    kind: str, amounts: Sequence[str], root: Path, changes: list[str], out: Path
) -> dict[str, dict[str, Any]]:
    """How well pictures follow the hints of a kind, and their prompts, with and without the control.

    What else is asked of a control, and the sheet, is of that which learnt from all pictures.
    """
    told, judge = KINDS[kind], emoji_measures.judge_of(sfumato.load("emoji_judge"))
    items, prompts = _asked(told)
    hints = [item.inputs[told.told] for item in items]
    ways = {"uncontrolled": draw(sfumato.load("emoji"), len(items), prompt=prompts)}
    for amount in amounts:
        model = trained(kind, amount, root, changes)
        ways[AMOUNTS[amount]] = draw(model, len(items), prompt=prompts, **{told.told: hints})
        if told.told == "hint":
            asked = {"prompt": prompts, "hint": hints, "guidance": _GUIDED}
            ways[AMOUNTS[amount] + _HINT] = draw(model, len(items), **asked)
    whole = "all" in amounts
    if told.told == "hint" and whole:
        # What the hint alone says; boxes are forgotten with the prompt in training.
        ways["no prompt"] = draw(model, len(items), prompt="", guidance=1.0, hint=hints)
    ways["real pictures"] = pictures(items)
    ways["another's real picture"] = pictures(items).roll(1, 0)
    boxes = [[thing["box"] for thing in item.inputs.get("boxes", ())] for item in items]
    wanted: Any = {"boxes": boxes, "keypoints": [[_centre(box) for box in each] for each in boxes]}.get(kind)
    if wanted is None:
        wanted = torch.stack(hints)[:, :1]
    rows: dict[str, Any] = {}
    for name, made in ways.items():
        rows[name] = {"follows": mean(told.score(wanted, made))}
        rows[name]["clip score"] = interval(clip_score(judge, made, prompts))
    if not whole:
        return rows
    shown = slice(0, 12)
    drawn = torch.stack([outlined(item) for item in items[shown]] if told.told == "boxes" else hints[shown])
    seen = {
        name.removeprefix(f"{AMOUNTS['all']}, "): made[shown]
        for name, made in ways.items()
        if name != "another's real picture" and not name.startswith(AMOUNTS["1000"])
    }
    sheet([drawn, *seen.values()], ["asked", *seen], out / f"control_{kind}.png")
    return rows


def _asked(kind: Kind) -> tuple[list[Item], list[str]]:
    """Held-out concepts, or new scenes, with their hints, and what is asked for."""
    plain: Dataset = (
        Scenes(count=COUNT, **_SCENES | {"fixed": False}) if kind.scenes else Emoji(split="held_out")
    )
    data = plain
    if kind.detector is not None:
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


def write(found: dict[str, dict[str, Any]], out: Path) -> None:
    """The page of what was found."""
    sections = []
    for kind, told in KINDS.items():
        if kind in found:
            head = f"## {kind}\n\n{told.words} {told.steps:,} steps of 16{told.how}."
            sections.append(f"{head}\n\n{table(found[kind])}\n\n![{kind}](control_{kind}.png)\n")
    (out / "control.md").write_text(
        "# Controls, measured\n\nControls of the embedded model `emoji`, each trained by "
        "`examples/train_control.yaml` for as many steps as its section says, on held-out concepts and new "
        "scenes; by `python benchmarks/control.py`, 95 % intervals in brackets. The clip score, with the "
        "prompt, is by `emoji_judge`; without a prompt the model is told the hint alone, and `hint guided` "
        "is told it on one side of guidance only.\n\n" + "\n".join(sections)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--amounts", type=lambda text: text.split(","), default=list(AMOUNTS))
    parser.add_argument(
        "--set", action="append", default=[], help="for all runs, such as steps=20 to try it out"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/control"), help="where runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    if unknown := [each for each in arguments.amounts if each not in AMOUNTS]:
        parser.error(f"no amount {unknown[0]!r}: say {' or '.join(AMOUNTS)}")
    file = arguments.out / "control.json"
    for kind in arguments.only:
        rows = measured(kind, arguments.amounts, arguments.root, arguments.set, arguments.out)
        found = json.loads(file.read_text()) if file.exists() else {}
        known = {**found.get(kind, {}), **rows}
        found[kind] = {name: known[name] for name in sorted(known, key=_ORDER.index)}
        file.write_text(json.dumps(found, indent=1))
        write(found, arguments.out)
        print(kind, json.dumps(rows, indent=1), flush=True)


if __name__ == "__main__":
    main()
