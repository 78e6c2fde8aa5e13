"""Editing, measured on the embedded model: words, inversion, strokes, instructions.

    python benchmarks/editing.py                   # all of it: docs/editing.md, its figures and pictures
    python benchmarks/editing.py --only swaps      # a part; the others stay as they were

Instructions are of `runs/instruct`, by examples/train_instruct.yaml; it is trained if it is not there yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emoji_measures
import torch
import torch.nn.functional as F
from editing_page import write
from fashion import ROOT
from latent_measures import distances, draw, mean, pictures, share, sheet
from torch import Tensor

import sfumato
from sfumato.core.sampler import StepEvent
from sfumato.data.emoji import Emoji
from sfumato.data.instructed import Instructed
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.invert import invert
from sfumato.editing.local_blend import LocalBlend
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.generation.images import to_image
from sfumato.metrics.reconstruction import psnr
from sfumato.model import Model
from sfumato.networks.perceptual import Perceptual
from sfumato.training.run import train
from sfumato.training.run_file import read

_PAIRS = 50
_STEPS = (5, 10, 20, 40, 80)
_STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
_SCALE = 3.0
_THRESHOLD = 0.65
"""The maps of this model are flat: at the usual .3 words are everywhere, and at .8 few edits succeed."""


def swaps(out: Path) -> dict[str, Any]:
    """One thing for another in the same words: does it become the other, and does the rest stay."""
    model, judge, eye = _models()
    asked = emoji_measures.training_captions()
    names = [each.concept for each in asked]
    # The second thing is another of the same style, far from the first in the list.
    pairs = [(asked[2 * i % len(asked)], asked[(2 * i + 94) % len(asked)]) for i in range(_PAIRS)]
    rows: dict[str, Any] = {}
    shown: list[Tensor] = []
    alone = draw(model, len(pairs), prompt=[new.prompt for _, new in pairs])
    seeds = [1000 + number for number in range(len(pairs))]
    for name in ("prompt to prompt", "with local blend"):
        sources, edits, inside = [], [], []
        for (old, new), seed in zip(pairs, seeds, strict=True):
            edit: Any = PromptToPrompt(cross=0.4, self_attention=0.2)
            if name == "with local blend":
                words = (old.concept.split()[-1], new.concept.split()[-1])
                edit = LocalBlend(words=words, edit=edit, threshold=_THRESHOLD)
            last: list[Tensor] = []

            def observe(event: StepEvent, last: list[Tensor] = last) -> None:
                last[:] = [event.x]

            told: dict[str, Any] = {"prompt": [old.prompt, new.prompt], "seeds": [seed, seed], "edit": edit}
            made = sfumato.generate(model, observe=observe, **told).tensor
            changed = (last[0][1] != last[0][0]).any(0).float()[None, None]
            sources.append(made[0])
            edits.append(made[1])
            inside.append(F.interpolate(changed, made.shape[-2:])[0])
        source, edited, mask = torch.stack(sources), torch.stack(edits), torch.stack(inside)
        found = emoji_measures.concepts(judge, edited, [new for _, new in pairs], names)
        rows[name] = {"becomes the other": share(found), "changed": mean(mask.mean((1, 2, 3)).tolist())}
        if name == "with local blend":
            near, far = (_outside(eye, source, other, mask) for other in (edited, alone))
            rows[name]["eye, outside the blend"] = mean(near)
            rows["generated alone"] = {"eye, outside the blend": mean(far)}
        shown += [source[:12], edited[:12]]
    found = emoji_measures.concepts(judge, alone, [new for _, new in pairs], names)
    rows.setdefault("generated alone", {})["becomes the other"] = share(found)
    same = sfumato.generate(model, prompt=[asked[0].prompt] * 2, seeds=[5, 5], edit=PromptToPrompt()).tensor
    rows["the same words"] = {"greatest difference": float((same[0] - same[1]).abs().max())}
    labels = ["source", "word swapped", "source", "with local blend"]
    sheet([*shown, alone[:12]], [*labels, "generated alone"], out / "editing_swaps.png")
    return rows


def inversion(out: Path) -> dict[str, Any]:
    """Held-out pictures found in the noise and made again; under guidance, with nulls and without."""
    model, _, _ = _models()
    data = Emoji(size=64, split="held_out")
    chosen = [data.load(i * len(data) // 12, 0) for i in range(12)]
    real = pictures(chosen)
    told = [f"{item.inputs['caption']}, {item.inputs['style']}" for item in chosen]
    with torch.no_grad():
        back = model.space.decode(model.space.encode(real)).clamp(-1, 1)
    rows: dict[str, Any] = {"autoencoder alone": {"PSNR to the given": mean(psnr(back, real).tolist())}}
    for method in ("ddim", "fixed_point"):
        for steps in _STEPS:
            found = invert(model, list(real), prompt=told, steps=steps, method=method)
            again = found.make().tensor
            row = {"PSNR to the given": psnr(again, real), "PSNR to the autoencoder's": psnr(again, back)}
            rows[f"{method}, {steps} steps"] = {key: mean(value.tolist()) for key, value in row.items()}
    shown = [real, back, again]
    worst = []
    for null in (None, "prompt", "text"):
        told_null: Any = null
        found = invert(model, list(real), prompt=told, steps=20, null=told_null, scale=_SCALE)
        again = found.make(guidance=_SCALE).tensor
        value = psnr(again, back)
        worst.append(value)
        name = {None: "no null", "prompt": "its prompt as null", "text": "null text"}[null]
        rows[f"guidance {_SCALE:g}, {name}"] = {"PSNR to the autoencoder's": mean(value.tolist())}
        shown.append(again)
    rows["null text"] = {"least gain in dB": float((worst[2] - worst[0]).min())}
    # The model has drawn every colour of much, and little that it has never seen in the other style.
    blue = [each.removeprefix("a ").removeprefix("an ") for each in told]
    found = invert(model, list(real), prompt=told, steps=20, method="fixed_point")
    made = found.make(prompt=[f"a blue {each}" for each in blue], guidance=1.0).tensor
    wanted = [emoji_measures.Asked(each, each, "", "blue") for each in blue]
    rows["made in blue"] = {"is blue": share(emoji_measures.colored(made, wanted))}
    rows["given"] = {"is blue": share(emoji_measures.colored(real, wanted))}
    shown.append(made)
    names = ["given", "autoencoder", "made again", "guided", "prompt as null", "null text", "in blue"]
    sheet(shown, names, out / "editing_inversion.png")
    return rows


def strokes(out: Path) -> dict[str, Any]:
    """Coarse strokes made into pictures (SDEdit): how near to the strokes and to real pictures."""
    model, _, _ = _models()
    data = Emoji(size=64, split="train")
    chosen = [data.load(i * len(data) // 100, 0) for i in range(100)]
    real, painted = pictures(chosen), torch.stack([_painted(item.image) for item in chosen])
    told = [f"{item.inputs['caption']}, {item.inputs['style']}" for item in chosen]
    rows: dict[str, Any] = {"strokes": distances(painted, real)}
    shown = [real[::9], painted[::9]]
    for strength in _STRENGTHS:
        edit = ImageToImage(image=list(painted), strength=strength)
        made = draw(model, len(painted), prompt=told, edit=edit, sampler="ancestral", steps=50)
        away = (made - painted).square().mean((1, 2, 3)).sqrt()
        rows[f"strength {strength:g}"] = {**distances(made, real), "from the strokes": mean(away.tolist())}
        shown.append(made[::9])
    names = ["real", "strokes", *(f"{strength:g}" for strength in _STRENGTHS)]
    sheet(shown, names, out / "editing_strokes.png")
    return rows


def instruct(out: Path, folder: Path = Path("runs/instruct")) -> dict[str, Any]:
    """Skin tones by instruction, of held-out people: the tone asked for, and everything else as it was."""
    if not (folder / "model" / "model.json").exists():
        run = read(ROOT / "examples" / "train_instruct.yaml", [])
        train(run, folder, lambda event: print(event.step, event.loss, file=sys.stderr, end="\r"))
    model = sfumato.load(folder)
    data = Instructed(("skin",), size=64, split="held_out")
    chosen = [i * len(data) // 100 for i in range(min(100, len(data)))]
    items = [data.load(i, 0) for i in chosen]
    before, wanted = torch.stack([item.inputs["image"] for item in items]), pictures(items)
    told = [item.inputs["caption"] for item in items]
    made = draw(model, len(items), prompt=told, image=list(before))
    own = [data.changes[i] for i in chosen]
    right = []
    for change, picture in zip(own, made, strict=True):
        # The thing in every tone: the nearest is the tone that it was given.
        ways = {c.to: data.emoji.load(c.after, 0).image for c in data.changes if c.before == change.before}
        ways[""] = data.emoji.load(change.before, 0).image
        nearest = min(ways, key=lambda to: float((ways[to] - picture).square().mean()))
        right.append(nearest == change.to)
    still = ((wanted - before).abs().amax(1, keepdim=True) < 0.02).float()
    with torch.no_grad():
        back = model.space.decode(model.space.encode(before)).clamp(-1, 1)
    away = [
        ((each - before).abs() * still).sum((1, 2, 3)) / (3 * still.sum((1, 2, 3))) for each in (made, back)
    ]
    sheet([before[:12], made[:12], wanted[:12]], ["given", "made", "wanted"], out / "editing_instruct.png")
    return {
        "by instruction": {"tone asked for": share(right), "change of the rest": mean(away[0].tolist())},
        "autoencoder alone": {"change of the rest": mean(away[1].tolist())},
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    part.__name__: part for part in (swaps, inversion, strokes, instruct)
}


def _models() -> tuple[Model, Any, Perceptual]:
    judge = emoji_measures.judge_of(sfumato.load("emoji_judge"))
    return sfumato.load("emoji"), judge, Perceptual.pretrained()


@torch.no_grad()
def _outside(eye: Perceptual, one: Tensor, other: Tensor, mask: Tensor) -> list[float]:
    """The distance to the eye of two pictures that are made alike inside the masks."""
    return torch.cat(
        [
            eye(x, x * m + y * (1 - m))
            for x, y, m in zip(one.split(10), other.split(10), mask.split(10), strict=True)
        ]
    ).tolist()


def _painted(picture: Tensor, cells: int = 8, colors: int = 6) -> Tensor:
    """A picture (3, H, W) as somebody paints it with a broad brush: few cells, few colours."""
    image = to_image(picture)
    small = image.resize((cells, cells)).quantize(colors).convert("RGB")
    large = small.resize(image.size, resample=0)
    return torch.tensor(list(large.tobytes())).view(*image.size[::-1], 3).permute(2, 0, 1) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    file = arguments.out / "editing.json"
    for part in arguments.only:
        rows = PARTS[part](arguments.out)
        found = json.loads(file.read_text()) if file.exists() else {}
        found[part] = rows
        file.write_text(json.dumps(found, indent=1))
        write(found, arguments.out)
        print(part, json.dumps(rows, indent=1), flush=True)


if __name__ == "__main__":
    main()
