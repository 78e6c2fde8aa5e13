"""Latent diffusion and its conditions, really trained on the embedded set, each with the measure it is owed.

Trains every run of RUNS that is not there yet (half an hour of one core each, the autoencoders an hour),
draws held-out samples, measures them and keeps the numbers beside the run, so that the work can be cut up.

    python benchmarks/latent.py                     # all of it, then docs/latent.md and its pictures
    python benchmarks/latent.py --only boxes,map    # a part; the page is written when all parts are there
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import latent_measures as measures
from fashion import ROOT
from latent_page import write

import sfumato
from sfumato.model import Model
from sfumato.training.run import train
from sfumato.training.run_file import read

_SHARP = """{"name": "autoencoding", "perceptual": 0.2, "adversarial": 0.2, "start": 0, "layers": 2,
"width": 32, "measured": 512}"""
_CODES = '{"name": "vq", "width": 32, "blocks": 1, "groups": 8, "codes": 1024, "revive_after": 50}'
_WORDS = ("steps=4000", "precision=bf16")

RUNS: dict[str, tuple[str, list[str]]] = {
    "ae_l2": ("train_autoencoder.yaml", []),
    "ae_kl": (
        "train_autoencoder.yaml",
        [
            "start={root}/ae_l2",
            f"objective={_SHARP}",
            'optimizer={"rate": 2e-4, "betas": [0.5, 0.9], "warm_up": 200, "clip": null}',
            "steps=800",
        ],
    ),
    "vq_l2": ("train_autoencoder.yaml", [f"model.autoencoder={_CODES}", "precision=bf16"]),
    "text": ("train_text.yaml", ["model.space.autoencoder.from={root}/ae_kl", *_WORDS]),
    "text_pixels": (
        "train_text.yaml",
        [
            'model.space={"name": "pixel", "patch": 4, "multiple": 16}',
            "model.network.in_channels=48",
            "model.network.out_channels=48",
            "cache=false",
            "steps=4900",
            "precision=bf16",
        ],
    ),
    "boxes": ("train_boxes.yaml", ["steps=4000", "precision=bf16"]),
    "map": ("train_semantic_map.yaml", ["steps=4000", "precision=bf16"]),
    "depth": ("train_depth.yaml", ["precision=bf16"]),
    "large": (
        "train_super_resolution.yaml",
        ["model.space.autoencoder.from={root}/ae_kl", "steps=3000", "precision=bf16"],
    ),
    "inpainting": ("train_inpainting.yaml", ["steps=8000", "precision=bf16"]),
    "paired": ("train_paired.yaml", ["steps=9000", "precision=bf16"]),
}
"""Name: the example it is, and what is changed in it so that two cores do in their time.

text_pixels has the steps that last as long as text's 4,000: .37 s each, undisturbed, for .45 s in latents."""

MEASURES: dict[str, Callable[[dict[str, Model], Path], dict[str, Any]]] = {
    "autoencoders": measures.autoencoders,
    "text": measures.text,
    "boxes": measures.boxes,
    "map": measures.semantic_map,
    "depth": measures.depth,
    "large": measures.super_resolution,
    "inpainting": measures.inpainting,
    "paired": measures.paired,
}
"""Part: what is measured of its models, the runs that NEEDS names."""

NEEDS = {"autoencoders": ("ae_l2", "ae_kl", "vq_l2"), "text": ("text", "text_pixels")}


def trained(name: str, root: Path, changes: Sequence[str] = ()) -> Model:
    """The model of a run, from its folder if it is done."""
    folder = root / name
    if not (folder / "model" / "model.json").exists():
        example, overrides = RUNS[name]
        always = ["sample_every=0", "workers=1", "saving.minutes=5"]
        said = [
            each.format(root=root) if "{root}" in each else each for each in (*overrides, *always, *changes)
        ]
        run = read(ROOT / "examples" / example, said)
        train(run, folder, _progress(name), allow_change=True)  # a run made longer in RUNS goes on
    return sfumato.load(folder)


def _progress(name: str) -> Callable[[Any], None]:
    return lambda event: print(name, event.step, event.loss, file=sys.stderr, end="\r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MEASURES))
    parser.add_argument(
        "--train", type=lambda text: text.split(","), default=[], help="runs, without measures"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="for all runs, such as steps=20 to try it out"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/latent"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    root = arguments.root
    root.mkdir(parents=True, exist_ok=True)
    for name in arguments.train:
        trained(name, root, arguments.set)
    for part in [] if arguments.train else arguments.only:
        file = root / f"{part}.json"
        if not file.exists():
            models = {name: trained(name, root, arguments.set) for name in NEEDS.get(part, (part,))}
            found = MEASURES[part](models, root)
            file.write_text(json.dumps(found))
            print(part, found, file=sys.stderr)
    files = {part: root / f"{part}.json" for part in MEASURES}
    if all(file.exists() for file in files.values()):
        write({part: json.loads(file.read_text()) for part, file in files.items()}, root, arguments.out)


if __name__ == "__main__":
    main()
