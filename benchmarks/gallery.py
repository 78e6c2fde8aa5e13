"""docs/gallery.md: ways to edit, a strip of pictures each, drawn by the embedded model.

python benchmarks/gallery.py                    # all of it, a minute of two cores
python benchmarks/gallery.py --only words,strokes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fashion import ROOT
from torch import Tensor

import sfumato
from sfumato.core.region import Region
from sfumato.data.emoji import Emoji
from sfumato.data.picture import picture_of
from sfumato.editing.attention_maps import maps
from sfumato.editing.extend import extend
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.inpaint import Inpaint
from sfumato.editing.interpolate import interpolate
from sfumato.editing.invert import invert
from sfumato.editing.local_blend import LocalBlend
from sfumato.editing.outpaint import Outpaint
from sfumato.editing.prompt_to_prompt import PromptToPrompt
from sfumato.editing.regional import Regional
from sfumato.interfaces.demo import captioned
from sfumato.model import Model
from sfumato.registry import build

RUNS = Path("runs")
"""Where benchmarks/control.py and benchmarks/editing.py keep what they train."""
Strip = list[tuple[Tensor, str]]
"""Pictures (3, H, W), each with what stands below it."""


class Row(NamedTuple):
    """A way to edit, what is said of it, the line of Python that does it, its drawing, and a run it needs."""

    heading: str
    words: str
    code: str
    draw: Callable[[Model], Strip]
    run: str = ""


def words(model: Model) -> Strip:
    """Prompt-to-prompt: one picture, its words changed."""
    said = ["a red apple, fluent 3d", "a green apple, fluent 3d", "a blue apple, fluent 3d"]
    swapped = sfumato.generate(model, prompt=said, seeds=[7] * 3, edit=PromptToPrompt(cross=0.6)).tensor
    edit = LocalBlend(words=("apple",), edit=PromptToPrompt(cross=0.6))
    local = sfumato.generate(model, prompt=said[:2], seeds=[7] * 2, edit=edit).tensor
    more = PromptToPrompt(weights={"red": 3.0})
    heeded = sfumato.generate(model, prompt=said[:1] * 2, seeds=[7] * 2, edit=more).tensor
    names = ["a red apple", "green", "blue", "green, in the apple alone", "red, thrice"]
    return list(zip([*swapped, local[1], heeded[1]], names, strict=True))


def where(model: Model) -> Strip:
    """Attention maps."""
    found = maps(model, prompt="a red apple left of a cat face, noto", seed=3)
    shown = [picture_of(found.overlay(word), 3, "overlay") for word in ("apple", "cat")]
    return list(zip([found.images.tensor[0], *shown], ["the picture", "apple", "cat"], strict=True))


def given(model: Model) -> Strip:
    """Inversion: a given picture, made again and otherwise."""
    picture = _picture("red apple", "noto")
    found = invert(model, picture, prompt="a red apple, noto", steps=25)
    ways = [
        found.make(),
        found.make(prompt="a green apple, noto"),
        found.make(prompt="a red apple, fluent 3d"),
    ]
    names = ["given", "made again", "as a green apple", "as fluent 3d"]
    return list(zip([picture, *(way.tensor[0] for way in ways)], names, strict=True))


def strokes(model: Model) -> Strip:
    """SDEdit: coarse strokes, made over with more and more strength."""
    picture = torch.ones(3, 64, 64)
    picture[:, 16:56, 12:52] = torch.tensor([0.9, -0.6, -0.6])[:, None, None]
    picture[:, 6:18, 30:34] = torch.tensor([-0.3, -0.5, -0.8])[:, None, None]
    strip: Strip = [(picture, "strokes")]
    for strength in (0.3, 0.5, 0.7, 0.9):
        edit = ImageToImage(image=picture, strength=strength)
        made = sfumato.generate(model, prompt="a red apple, noto", seed=2, edit=edit).tensor
        strip.append((made[0], f"strength {strength:g}"))
    return strip


def holes(model: Model) -> Strip:
    """Inpainting and outpainting."""
    picture = _picture("slice of pizza", "noto")
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:44, 20:48] = 1
    shown = picture * (1 - mask)
    said = "a slice of pizza, noto"
    inside = sfumato.generate(model, prompt=said, seed=1, edit=Inpaint(image=picture, mask=mask))
    half = picture[:, :, :32]
    beside = Outpaint(image=half, right=32, overlap=4)
    outside = sfumato.generate(model, prompt=said, seed=1, edit=beside)
    cut = torch.cat((half, torch.zeros(3, 64, 32)), dim=2)
    pieces = [picture, shown, inside.tensor[0], cut, outside.tensor[0]]
    names = ["given", "a hole", "made anew", "half of it", "continued"]
    return list(zip(pieces, names, strict=True))


def wide(model: Model) -> Strip:
    """A picture continued piece by piece."""
    made = extend(model, _picture("cactus", "noto"), right=128, seed=4, prompt="a cactus, noto")
    return [(made.tensor[0], "a cactus, continued by two tiles")]


def regions(model: Model) -> Strip:
    """Several prompts, each in its region."""
    halves = Regional(
        prompts=("a lemon, noto", "a red apple, noto"),
        regions=(Region(box=(0, 0, 32, 64)), Region(box=(32, 0, 64, 64))),
        base=0.2,
    )
    asked = "a lemon left of a red apple, noto"
    parted = sfumato.generate(model, prompt=asked, seed=1, edit=halves)
    whole = sfumato.generate(model, prompt=asked, seed=1)
    names = ["the words alone", "each in its half"]
    return list(zip([whole.tensor[0], parted.tensor[0]], names, strict=True))


def between(model: Model) -> Strip:
    """Interpolation of noise and words."""
    ends = {"seed": [1, 2], "prompt": ["a red apple, fluent 3d", "a lemon, fluent 3d"]}
    strip = interpolate(model, ends, count=8).tensor
    return list(zip(strip, ["a red apple", *[""] * 6, "a lemon"], strict=True))


def detectors(model: Model) -> Strip:
    """What detectors see, that controls are told."""
    del model
    picture = _picture("slice of pizza", "fluent 3d")
    strip: Strip = [(picture, "given")]
    for name in ("canny", "scribble", "hough", "soft_edge", "palette", "luminance"):
        seen = build("detector", name)(picture, "gallery")
        strip.append(
            (seen.expand(3, -1, -1) * 2 - 1 if float(seen.min()) >= 0 else seen.expand(3, -1, -1), name)
        )
    return strip


def edges(model: Model) -> Strip:
    """A ControlNet of edges."""
    del model
    control = sfumato.load(RUNS / "control/canny_all")
    hint = build("detector", "canny")(_picture("cat face", "noto"), "gallery").expand(3, -1, -1)
    said = ["a cat face, noto", "a fox, noto", "a blue cat face, noto", "a tiger face, fluent 3d", ""]
    guided = [{"name": "control_scale", "conditional": True}, {"name": "classifier_free", "scale": 2.0}]
    told: dict[str, Any] = {"seeds": [3] * len(said), "hint": [hint] * len(said), "guidance": guided}
    made = sfumato.generate(control, prompt=said, **told).tensor
    return list(zip([hint, *made], ["edges", *said[:-1], "no words"], strict=True))


def boxes(model: Model) -> Strip:
    """GLIGEN's boxes."""
    del model
    control = sfumato.load(RUNS / "control/boxes_all")
    left, right, high = (0.06, 0.3, 0.38, 0.38), (0.56, 0.3, 0.38, 0.38), (0.3, 0.05, 0.4, 0.4)
    low = (0.25, 0.52, 0.44, 0.44)
    asked = {
        "a red apple left of a cat face": (("red apple", left), ("cat face", right)),
        "a cat face left of a red apple": (("cat face", left), ("red apple", right)),
        "a red apple above a cat face": (("red apple", high), ("cat face", low)),
        "a cat face above a hamburger": (("cat face", high), ("hamburger", low)),
    }
    strip: Strip = []
    for words, things in asked.items():
        layout = [{"label": label, "box": list(box)} for label, box in things]
        made = sfumato.generate(control, prompt=words, boxes=layout, seed=5).tensor[0]
        strip += [(_framed(made, [box for _, box in things]), words)]
    return strip


def instructions(model: Model) -> Strip:
    """InstructPix2Pix, of pictures, or changes, it was not trained on."""
    del model
    told = sfumato.load(RUNS / "instruct")
    asked = [
        ("victory hand", "noto", "make the skin tone dark"),
        ("man with veil", "noto", "turn the man into a woman"),
        ("pretzel", "fluent 3d", "color it green"),
        ("monkey", "noto", "color it turquoise"),
    ]
    strip: Strip = []
    for concept, style, words in asked:
        before = _picture(concept, style)
        made = sfumato.generate(told, prompt=words, image=before, seed=1).tensor[0]
        strip += [(before, "given"), (made, words)]
    return strip


ROWS: dict[str, Row] = {
    "words": Row(
        "In other words",
        "Prompt-to-prompt: pictures of changed words keep the layout of the first; with local blend all but "
        "the places of the words stay.",
        "generate(model, prompt=[old, new], seeds=[7, 7], edit=PromptToPrompt())",
        words,
    ),
    "where": Row(
        "Where words are", "Attention maps (DAAM).", 'maps(model, prompt=...).overlay("apple")', where
    ),
    "given": Row(
        "A given picture",
        "Inversion: the noise from which the model makes it again, or otherwise.",
        "invert(model, picture, prompt=old).make(prompt=new)",
        given,
    ),
    "strokes": Row(
        "Strokes", "SDEdit.", "generate(model, prompt=..., edit=ImageToImage(picture, strength=0.5))", strokes
    ),
    "holes": Row(
        "Holes and margins",
        "Inpainting and outpainting; what is given stays to the last bit.",
        "generate(model, prompt=..., edit=Inpaint(picture, mask))",
        holes,
    ),
    "wide": Row("Wider", "Tile by tile.", "extend(model, picture, right=128, prompt=...)", wide),
    "regions": Row(
        "Several prompts",
        "Each in its region (MultiDiffusion).",
        "generate(model, prompt=..., edit=Regional(prompts, regions))",
        regions,
    ),
    "between": Row(
        "Between two",
        "Noise along the great circle, words straight.",
        "interpolate(model, ends, count=8)",
        between,
    ),
    "detectors": Row(
        "What controls are told",
        "Detectors; `sfumato detect canny in.png out.png`.",
        'generate(load("emoji +edges=runs/canny"), prompt=..., edges=hint)',
        detectors,
    ),
    "edges": Row(
        "Along edges",
        "A ControlNet, with the network's decoder, trained by `python benchmarks/control.py --only canny`.",
        "generate(load(run), prompt=..., hint=edges)",
        edges,
        "control/canny_all",
    ),
    "boxes": Row(
        "In boxes",
        "GLIGEN, trained by `python benchmarks/control.py --only boxes`; boxes are drawn over what was made.",
        'generate(load(run), prompt=..., boxes=[{"label": "sun", "box": [left, top, width, height]}, ...])',
        boxes,
        "control/boxes_all",
    ),
    "instructions": Row(
        "By instruction",
        "InstructPix2Pix, trained by examples/train_instruct.yaml, of pictures, or changes, it has not seen.",
        'generate(load(run), prompt="color it green", image=picture)',
        instructions,
        "instruct",
    ),
}


def page(names: Sequence[str], out: Path) -> None:
    """The page of all rows; pictures of those that were drawn now."""
    model: Any = sfumato.load()
    for name in names:
        if ROWS[name].run and not (RUNS / ROWS[name].run).exists():
            print(f"{name} stays as it was: there is no {RUNS / ROWS[name].run}")
            continue
        pictures, below = zip(*ROWS[name].draw(model), strict=True)
        captioned(pictures, below, len(pictures)).save(out / f"gallery_{name}.png")
        print(out / f"gallery_{name}.png", flush=True)
    sections = [
        f"## {row.heading}\n\n{row.words}\n\n```python\n{row.code}\n```\n\n"
        f"![{row.heading}](gallery_{name}.png)\n"
        for name, row in ROWS.items()
        if (out / f"gallery_{name}.png").exists()
    ]
    (out / "gallery.md").write_text(
        "# Gallery\n\nWays to edit, on the embedded model at 64 pixels, by `python "
        "benchmarks/gallery.py`.\n\n" + "\n".join(sections)
    )


def _framed(picture: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
    """A picture (3, H, W) with boxes (left, top, width, height), shares of its sides, outlined in grey."""
    made, (height, width) = picture.clone(), picture.shape[1:]
    for left, top, wide, tall in boxes:
        x0, x1 = round(left * width), min(round((left + wide) * width), width - 1)
        y0, y1 = round(top * height), min(round((top + tall) * height), height - 1)
        made[:, y0 : y1 + 1, [x0, x1]] = 0.0
        made[:, [y0, y1], x0 : x1 + 1] = 0.0
    return made


def _picture(concept: str, style: str) -> Tensor:
    """A real drawing of the embedded set."""
    return Emoji(size=64, concepts=(concept,), styles=(style,), split="all")[0].image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    page(arguments.only, arguments.out)


if __name__ == "__main__":
    main()
