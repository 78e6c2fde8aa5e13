"""The embedded model, measured: does it draw what is asked, how near to the real, and what do settings do.

python benchmarks/emoji.py                    # all of it, some forty minutes of one core, then docs/emoji.md
python benchmarks/emoji.py --only agreement   # a part; the page is written when all parts are there
python benchmarks/emoji.py --model runs/emoji/net --root runs/emoji/found   # one that is still in training
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import emoji_measures as measures
import torch
import torch.nn.functional as F
from emoji_measures import Asked
from emoji_page import training, write
from fashion import ROOT
from latent_measures import distances, draw, interval, items_of, mean, pictures, share, sheet
from torch import Tensor

import sfumato
from sfumato.data.emoji import Emoji
from sfumato.data.item import collate
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.interfaces.demo import captioned
from sfumato.metrics.clip_score import clip_score, retrieval
from sfumato.metrics.evaluate import embed
from sfumato.metrics.features import EfficientNetLite0Features
from sfumato.metrics.reconstruction import reconstruction
from sfumato.model import Model

GUIDANCE = (1, 1.5, 2, 3, 4, 6, 8, 10)
STEPS = (4, 6, 8, 12, 16, 25, 50, 100)
SAMPLERS: dict[str, Any] = {
    "ddim": "ddim",
    "euler": "euler",
    "dpm_solver_pp 2": {"name": "dpm_solver_pp", "order": 2},
    "heun": "heun",
}
_COMPARED = 1000  # pictures on each side of a distance
_SWEPT = 100  # prompts of a sweep


class Bench(NamedTuple):
    """What is measured, by whom, and where it is kept."""

    model: Model
    judge: ClipFeatures
    root: Path


def judged(bench: Bench) -> dict[str, Any]:
    """How good the judge is: retrieval of held-out pairs and of those it has learnt."""
    rows = {}
    for split in ("held_out", "train"):
        data = Emoji(size=64, split=split, wording="varied")
        items = items_of(data)[:: max(1, len(data) // 350)]
        told = [item.inputs["caption"] for item in items]
        for first in (1, 5):
            estimate = retrieval(bench.judge, pictures(items), told, first=first)
            rows.setdefault(split, {})[estimate.name] = interval(estimate)
        rows[split]["pairs"] = len(items)
    return rows


def agreement(bench: Bench) -> dict[str, Any]:
    """Whether what is asked for is drawn: concepts, styles, colours, places."""
    scenes, placed = measures.side_by_side()
    train, held = ([d.concept for d in Emoji(split=split).drawings] for split in ("train", "held_out"))
    sets: dict[str, tuple[list[Asked], list[str], Tensor | None]] = {
        "training captions": (found := measures.training_captions(), train, measures.reals(found, "train")),
        "held-out concepts": (
            found := measures.held_out_concepts(),
            held,
            measures.reals(found, "held_out"),
        ),
        "in a style never shown": (measures.other_hand(), train, None),
        "colours, pairs of training": ((known := measures.colors("train"))[0], train, known[1]),
        "colours, new pairs": ((new := measures.colors("held_out"))[0], train, new[1]),
        "side by side, new scenes": (scenes, train, placed),
    }
    rows: dict[str, Any] = {}
    for name, (asked, names, real) in sets.items():
        images = draw(bench.model, len(asked), prompt=[each.prompt for each in asked])
        rows[name] = measures.measured(bench.judge, images, asked, names)
        rows[name] |= _score(bench.judge, images, asked)
        if real is not None:
            rows[f"{name}: real pictures"] = measures.measured(bench.judge, real, asked, names)
            rows[f"{name}: real pictures"] |= _score(bench.judge, real, asked)
        shown = torch.linspace(0, len(asked) - 1, 16).long().tolist()
        page = captioned(list(images[shown]), [asked[i].prompt for i in shown])
        page.save(bench.root / f"{_file(name)}.png")
    return rows


def distance(bench: Bench) -> dict[str, Any]:
    """Fréchet and KID against pictures of training and held-out ones, beside what they can be at best."""
    items = items_of(Emoji(size=64))
    taken = [i * len(items) // _COMPARED for i in range(_COMPARED)]
    rest = sorted(set(range(len(items))) - set(taken))
    chosen = [items[i] for i in taken]
    others = [items[rest[i * len(rest) // _COMPARED]] for i in range(_COMPARED)]
    held = items_of(Emoji(size=64, split="held_out"))
    told = [f"{item.inputs['caption']}, {item.inputs['style']}" for item in chosen]
    made = draw(bench.model, len(chosen), prompt=told)
    space = bench.model.space
    back = [
        torch.cat(
            [space.decode(space.encode(part)).clamp(-1, 1) for part in pictures(each).split(50)]
        ).detach()
        for each in (chosen, held)
    ]
    return {
        "generated, of training captions": distances(made, pictures(chosen)),
        "the autoencoder's of the same": distances(back[0], pictures(chosen)),
        "other pictures of training": distances(pictures(others), pictures(chosen)),
        "generated, to held-out": distances(made, pictures(held)),
        "the autoencoder's held-out, to held-out": distances(back[1], pictures(held)),
        "pictures of training, to held-out": distances(pictures(chosen), pictures(held)),
        **_autoencoder(bench.model, held),
    }


def guidance(bench: Bench) -> dict[str, Any]:
    """Agreement and distance at scales of guidance from 1 to 10."""
    return {str(scale): _at(bench, guidance=float(scale)) for scale in GUIDANCE}


def steps(bench: Bench) -> dict[str, Any]:
    """Agreement and time at 4 to 100 steps of four samplers."""
    return {
        f"{name}, {count}": {**_at(bench, sampler=sampler, steps=count), "sampler": name, "steps": count}
        for name, sampler in SAMPLERS.items()
        for count in STEPS
    }


def memory(bench: Bench) -> dict[str, Any]:
    """How near samples are to pictures of training, by features and pixels: copies are counted."""
    data = items_of(Emoji(size=64))
    known = pictures(data)
    features = EfficientNetLite0Features(size=96)
    seen = F.normalize(embed(known, features), dim=1)
    some = known[:: len(known) // 200]
    again = _given_back(bench.model.space, some)
    # What the autoencoder itself makes of a picture of training is a copy of it.
    own = (F.normalize(embed(again, features), dim=1) * seen[:: len(known) // 200]).sum(1)
    limit = float(own.quantile(0.05))
    sets = {
        "training captions": measures.training_captions(),
        "held-out concepts": measures.held_out_concepts(),
        "in a style never shown": measures.other_hand(),
    }
    rows: dict[str, Any] = {}
    for name, asked in sets.items():
        images = draw(bench.model, len(asked), prompt=[each.prompt for each in asked])
        near = F.normalize(embed(images, features), dim=1) @ seen.T
        best = near.max(1)
        rows[name] = {"copies": share((best.values > limit).tolist()), "nearest": mean(best.values.tolist())}
        rows[name] |= {"limit": limit, "pictures": len(asked)}
        shown = torch.linspace(0, len(asked) - 1, 12).long()
        nearest = known[best.indices[shown]]
        sheet([images[shown], nearest], ["made", "nearest"], bench.root / f"memory_{_file(name)}.png")
    held = F.normalize(embed(pictures(items_of(Emoji(size=64, split="held_out"))), features), dim=1)
    best = (held @ seen.T).max(1).values
    rows["real held-out pictures"] = {
        "copies": share((best > limit).tolist()),
        "nearest": mean(best.tolist()),
    }
    return rows


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (judged, agreement, distance, guidance, steps, memory)
}


def _at(bench: Bench, **settings: Any) -> dict[str, Any]:
    """Share of concepts found, score and seconds a picture under some settings."""
    asked = measures.training_captions()[:_SWEPT]
    names = [d.concept for d in Emoji(split="train").drawings]
    began = time.perf_counter()
    images = draw(bench.model, len(asked), prompt=[each.prompt for each in asked], **settings)
    seconds = (time.perf_counter() - began) / len(asked)
    real = measures.reals(asked, "train")
    return {
        "concept": share(measures.concepts(bench.judge, images, asked, names)),
        **_score(bench.judge, images, asked),
        "frechet": distances(images, real)["frechet"],
        "seconds a picture": seconds,
    }


def _score(judge: ClipFeatures, images: Tensor, asked: Sequence[Asked]) -> dict[str, list[float]]:
    return {"clip score": interval(clip_score(judge, images, [each.prompt for each in asked]))}


def _autoencoder(model: Model, items: Sequence[Any]) -> dict[str, Any]:
    """PSNR and SSIM of held-out pictures given back."""
    alone = sfumato.Model.from_description({"autoencoder": model.describe()["space"]["autoencoder"]})
    alone.denoiser.network.load_state_dict(model.space.autoencoder.state_dict())
    batches = [collate(items[i : i + 16]) for i in range(0, len(items), 16)]
    return {"autoencoder, held-out": {each.name: interval(each) for each in reconstruction(alone, batches)}}


@torch.no_grad()
def _given_back(space: Any, images: Tensor) -> Tensor:
    """What the autoencoder makes of pictures."""
    return torch.cat([space.decode(space.encode(part)).clamp(-1, 1) for part in images.split(50)])


def _file(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--judge", default="emoji_judge")
    parser.add_argument("--root", type=Path, default=Path("runs/emoji/found"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    judge = measures.judge_of(sfumato.load(arguments.judge))
    bench = Bench(sfumato.load(arguments.model), judge, arguments.root)
    for part in arguments.only:
        found = PARTS[part](bench)
        (arguments.root / f"{part}.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found, indent=1), flush=True)
    if all((arguments.root / f"{part}.json").exists() for part in PARTS):
        found = {part: json.loads((arguments.root / f"{part}.json").read_text()) for part in PARTS}
        write(found, arguments.root, arguments.out)
        if legs := bench.model.card.get("legs"):
            training(legs, arguments.out / "emoji_training.png")


if __name__ == "__main__":
    main()
