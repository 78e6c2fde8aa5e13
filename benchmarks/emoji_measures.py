"""What benchmarks/emoji.py measures of the embedded model, by the judge and by colours and places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from latent_measures import pictures, share
from PIL import Image
from torch import Tensor

from sfumato.data.emoji import STYLES, Drawing, Emoji
from sfumato.data.recolored import HUES, Recolored, bare, dominant
from sfumato.data.scenes import Scenes
from sfumato.encoders.clip_features import ClipFeatures
from sfumato.generation.images import to_image
from sfumato.model import Model

AMONG, FIRST = 100, 5
"""A concept counts as drawn if the judge puts it among the first 5 of 100."""

PER_STYLE = 100
_NEW = 1 << 29  # seed of scenes that no model is trained on
_WHITE = 0.86  # in [-1, 1]: darker than this in any channel is no ground
_CUTS = range(20, 48, 4)


class Asked(NamedTuple):
    """One prompt, and what of it is looked for."""

    prompt: str
    concept: str
    style: str
    color: str = ""
    other: str = ""
    """Of two things side by side the one on the right."""


def training_captions() -> list[Asked]:
    """A hundred concepts that both hands drew, in both styles."""
    return _both(Emoji(split="train").drawings)


def held_out_concepts() -> list[Asked]:
    """Concepts that were held out in both styles."""
    return _both(Emoji(split="held_out").drawings)


def other_hand() -> list[Asked]:
    """Concepts that only Noto drew, asked for as a rendering."""
    drawings = Emoji(split="train").drawings
    rendered = {d.concept for d in drawings if d.style == STYLES[1]}
    alone = [d for d in drawings if d.style == STYLES[0] and d.concept not in rendered]
    kept = [d for d in alone if d.category not in ("Flags", "Symbols")]
    return [_asked(d, STYLES[1]) for d in _spread(kept, PER_STYLE)]


def colors(split: str) -> tuple[list[Asked], Tensor]:
    """Two hundred pairs of a colour word and a thing, in training or held out, and the drawings turned so."""
    data = Recolored(split=split)
    chosen = _spread(range(len(data)), 2 * PER_STYLE)
    found = []
    for number, word, _ in (data.pairs[index] for index in chosen):
        drawing = data.emoji.drawings[number]
        thing = bare(drawing.concept)
        article = ("an " if word[0] in "aeiou" else "a ") if drawing.article else ""
        found.append(Asked(f"{article}{word} {thing}, {drawing.style}", thing, drawing.style, word))
    return found, pictures([data.load(index, 0) for index in chosen])


def side_by_side() -> tuple[list[Asked], Tensor]:
    """A hundred new scenes of two things, the one left of the other, and these scenes as they are."""
    settings: dict[str, Any] = {"fewest": 2, "most": 2, "ground": "white", "apart": True}
    data, found, real = Scenes(count=1000, size=64, **settings), [], []
    for index in range(len(data)):
        item = data.load(index, _NEW)
        things = sorted(item.inputs["objects"], key=lambda each: each["box"][0])
        if len(things) < 2 or " left of " not in item.inputs["caption"]:
            continue
        left, right = things
        style = left["style"]
        prompt = f"{item.inputs['caption']}, {style}"
        found.append(Asked(prompt, left["concept"], style, other=right["concept"]))
        real.append(item.image)
        if len(found) == PER_STYLE:
            break
    return found, torch.stack(real)


def reals(asked: Sequence[Asked], split: str) -> Tensor:
    """The real pictures of what is asked."""
    data = Emoji(split=split)
    places = {(d.concept, d.style): i for i, d in enumerate(data.drawings)}
    return pictures([data.load(places[each.concept, each.style], 0) for each in asked])


@torch.no_grad()
def concepts(judge: ClipFeatures, images: Tensor, asked: Sequence[Asked], names: Sequence[str]) -> list[bool]:
    """Whether the concept asked for is among the first 5 of 100, the 99 others drawn from names, by seed."""
    shown, found = judge.images(images), []
    names = sorted(set(names))
    texts = {style: judge.texts([f"{name}, {style}" for name in names]) for style in STYLES}
    for row, each in enumerate(asked):
        others = [i for i, name in enumerate(names) if name != each.concept]
        drawn = random.Random(f"{row}:{each.prompt}").sample(others, AMONG - 1)
        own = judge.texts([f"{each.concept}, {each.style}"])[0]
        ahead = (texts[each.style][drawn] @ shown[row] >= own @ shown[row]).sum()
        found.append(bool(ahead < FIRST))
    return found


@torch.no_grad()
def styles(judge: ClipFeatures, images: Tensor, asked: Sequence[Asked]) -> list[bool]:
    """Whether a picture is nearer to its concept in the style asked for than in the other."""
    shown = judge.images(images)
    near = [judge.texts([f"{each.concept}, {style}" for each in asked]) for style in STYLES]
    scores = torch.stack([(shown * texts).sum(1) for texts in near])
    best = scores.argmax(0).tolist()
    return [STYLES[i] == each.style for i, each in zip(best, asked, strict=True)]


def colored(images: Tensor, asked: Sequence[Asked]) -> list[bool]:
    """Whether the hue of most of what is no ground is within 30 degrees of the word's."""
    found = []
    for image, each in zip(images, asked, strict=True):
        picture = to_image(image).convert("RGBA")
        solid = (image < _WHITE).any(0)
        alpha = Image.fromarray((solid.to(torch.uint8) * 255).numpy(), "L")
        picture.putalpha(alpha)
        hue, part = dominant(picture)
        found.append(part >= 0.25 and abs((hue - HUES[each.color] + 180) % 360 - 180) <= 30)
    return found


@torch.no_grad()
def in_order(judge: ClipFeatures, images: Tensor, asked: Sequence[Asked]) -> list[bool]:
    """Whether the left and the right of a picture, cut where it tells most, fit the things in that order."""
    found = []
    for image, each in zip(images, asked, strict=True):
        texts = judge.texts([f"{name}, {each.style}" for name in (each.concept, each.other)])
        halves = torch.stack(
            [_framed(part) for cut in _CUTS for part in (image[..., :cut], image[..., cut:])]
        )
        near = (judge.images(halves) @ texts.T).view(len(_CUTS), 2, 2)
        right, wrong = near[:, 0, 0] + near[:, 1, 1], near[:, 0, 1] + near[:, 1, 0]
        found.append(bool(right.max() > wrong.max()))
    return found


def measured(
    judge: ClipFeatures, images: Tensor, asked: Sequence[Asked], names: Sequence[str]
) -> dict[str, Any]:
    """All of one set of pictures that its prompts ask for, as shares with their 95 % intervals."""
    row: dict[str, Any] = {}
    if asked[0].other:
        return {"left and right": share(in_order(judge, images, asked)), "pictures": len(asked)}
    row["concept"] = share(concepts(judge, images, asked, names))
    row["style"] = share(styles(judge, images, asked))
    if asked[0].color:
        row["color"] = share(colored(images, asked))
    return {**row, "pictures": len(asked)}


def judge_of(model: Model) -> ClipFeatures:
    """The two towers of a loaded judge."""
    network = model.denoiser.network
    assert isinstance(network, ClipFeatures)
    return network


def _both(drawings: Sequence[Drawing]) -> list[Asked]:
    by_style = {style: {d.concept: d for d in drawings if d.style == style} for style in STYLES}
    both = [name for name in by_style[STYLES[0]] if name in by_style[STYLES[1]]]
    chosen = _spread(both, PER_STYLE)
    return [_asked(by_style[style][name], style) for name in chosen for style in STYLES]


def _asked(drawing: Drawing, style: str) -> Asked:
    prompt = f"{drawing.article} {drawing.concept}, {style}".strip()
    return Asked(prompt, drawing.concept, style)


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly over all."""
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def _framed(part: Tensor) -> Tensor:
    """What is no ground of a part (3, H, W), as large as an emoji stands on 64 x 64 of white."""
    solid = (part < _WHITE).any(0)
    side = 64
    if not solid.any():
        return part.new_ones(3, side, side)
    rows, columns = solid.any(1).nonzero().flatten(), solid.any(0).nonzero().flatten()
    cut = part[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    times = (side - 4) / max(cut.shape[1:])
    size = [max(1, round(edge * times)) for edge in cut.shape[1:]]
    large = torch.nn.functional.interpolate(cut[None], size, mode="bilinear", antialias=True)[0]
    page = part.new_ones(3, side, side)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    page[:, top : top + size[0], left : left + size[1]] = large
    return page
